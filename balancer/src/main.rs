//! The binary: parses the command line, calls the library, and turns errors into messages and exit codes.
#![expect(clippy::print_stdout, reason = "commands print their results")]

use std::{
    fmt::Display,
    future::Future,
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::{Context, Result};
use balancer::{
    agent,
    config::Config,
    juju::key::ClusterKey,
    operator::{
        all::All,
        bundle, bypass, check,
        cli::{Cli, Command, Configured, Limit, Shown},
        clients::ClientList,
        control::{self, Request},
        drain, events, exit,
        explain::Explanation,
        flows::{FlowList, Wanted},
        journal, keygen,
        status::{self, Status, Verdict},
        top, uninstall,
    },
    redirect,
};
use clap::Parser;
use serde::de::DeserializeOwned;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut logger = env_logger::Builder::from_env(
        env_logger::Env::default().default_filter_or("info,chitchat=warn,netlink_proto=error"),
    );
    if journal::is_journal() {
        logger.format(|out, record| {
            out.write_all(journal::lines(record.level(), &record.args().to_string()).as_bytes())
        });
    }
    let logger = logger.build();
    let level = logger.filter();
    events::Keeper::install(logger, level);
    match execute(cli.command) {
        Ok(code) => code,
        Err(error) => {
            let code = exit::of(&error);
            let text = format!("{error:#}");
            let is_told = ["sudo", "as root"].iter().any(|remedy| text.contains(remedy));
            let remedy = if code == exit::Code::NotPermitted && !is_told { "; use sudo" } else { "" };
            eprintln!("balancer: {text}{remedy}");
            code.into()
        }
    }
}

fn execute(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(configured) => agent::main(&configured.config)?,
        Command::Redirect { configured, hand_over: None, handed } => {
            redirect::main(&configured.config, handed)?;
        }
        Command::Redirect { configured, hand_over: Some(file), .. } => {
            redirect::hand_over(&configured.config, &file)?;
        }
        Command::Status { configured, json, all: true } => {
            return Ok(show::<All>(&Shown { json, configured }, &Request::StatusAll)?.code());
        }
        Command::Status { configured, json, all: false } => {
            let status: Status = show(&Shown { json, configured }, &Request::Status)?;
            return Ok(match status.verdict {
                Verdict::Ok => ExitCode::SUCCESS,
                Verdict::Degraded => exit::Code::Degraded.into(),
            });
        }
        Command::Top(configured) => top::top(&Config::load_paths(&configured.config)?.control)?,
        Command::Drain { configured, within, wait: waits } => {
            tell(&configured, &Request::Drain { within_s: within.as_secs().max(1) })?;
            if waits {
                let paths = Config::load_paths(&configured.config)?;
                println!("{}", wait(drain::wait(&paths.control, io::stdout().is_terminal()))?);
            }
        }
        Command::Resume(configured) => tell(&configured, &Request::Resume)?,
        Command::Bypass { lasts, all, configured } => {
            let paths = Config::load_paths(&configured.config)?;
            say(&wait(bypass::order(&paths, lasts, all))?);
        }
        Command::On(configured) => tell(&configured, &Request::On)?,
        Command::Limit { limit: Limit(limit), yes, configured } => order_limit(&configured, limit, yes)?,
        Command::Rebalance { configured, now, dry_run } => {
            tell(&configured, &Request::Rebalance { now, dry_run })?;
        }
        Command::Explain { address, shown } => {
            show::<Explanation>(&shown, &Request::Explain { address })?;
        }
        Command::Flows { client, limit, sort, shown } => {
            show::<FlowList>(&shown, &Request::Flows(Wanted { client, limit, sort }))?;
        }
        Command::Clients { limit, shown } => {
            show::<ClientList>(&shown, &Request::Clients { limit })?;
        }
        Command::Events { follow, shown } => {
            let paths = Config::load_paths(&shown.configured.config)?;
            wait(events::show(&paths.control, follow, shown.json, &mut io::stdout()))?;
        }
        Command::SupportBundle { file, addresses, configured } => {
            let file = wait(bundle::write(&configured.config, file, addresses))?;
            println!("{}: look through it before you send it", file.display());
        }
        Command::Uninstall(configured) => uninstall(&configured)?,
        Command::Keygen { file } => {
            ClusterKey::keygen(&file)?;
            println!("{}: copy this file to every controller, owned by root, mode 0600", file.display());
            if let Some(unused) = keygen::unused(&file) {
                println!("{unused}");
            }
        }
        Command::Check { configured, json } => {
            exit::need_root("check")?;
            let findings = wait(check::check(&configured.config))?;
            if json {
                println!("{}", serde_json::to_string_pretty(&check::json(&findings))?);
            } else {
                for finding in &findings {
                    println!("{finding}");
                }
            }
            return Ok(check::code(&findings).map_or(ExitCode::SUCCESS, Into::into));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Sends `request` to the agent and prints its answer.
fn tell(configured: &Configured, request: &Request) -> Result<()> {
    let paths = Config::load_paths(&configured.config)?;
    let answer = wait(control::call(&paths.control, request))?;
    say(answer.as_str().unwrap_or_default());
    Ok(())
}

/// Prints `text` in lines of at most 80 columns.
fn say(text: &str) {
    for line in text.lines() {
        println!("{}", status::wrap(line, 2));
    }
}

/// Sets the limit; asks before connections are closed.
fn order_limit(configured: &Configured, limit: Option<u32>, yes: bool) -> Result<()> {
    let paths = Config::load_paths(&configured.config)?;
    let order = |sure| wait(control::call(&paths.control, &Request::Limit { limit, sure }));
    let mut answer = order(yes)?;
    if let Some(question) = answer.get(control::ASKS).and_then(|text| text.as_str()) {
        if !io::stdin().is_terminal() {
            anyhow::bail!("{question}; nothing is changed; add --yes if you mean it");
        }
        eprint!("{}\nSet the limit? [y/N] ", status::wrap(question, 0));
        let mut reply = String::new();
        io::stdin().read_line(&mut reply).context("failed to read the reply")?;
        if !matches!(reply.trim(), "y" | "Y" | "yes") {
            anyhow::bail!("nothing is changed");
        }
        answer = order(true)?;
    }
    say(answer.as_str().unwrap_or_default());
    Ok(())
}

/// Asks the agent, prints its answer, and returns it.
fn show<T: DeserializeOwned + Display>(shown: &Shown, request: &Request) -> Result<T> {
    let paths = Config::load_paths(&shown.configured.config)?;
    let answer = wait(control::call(&paths.control, request))?;
    if shown.json {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    }
    let answer: T = control::read(answer)?;
    if !shown.json {
        print!("{answer}");
    }
    Ok(answer)
}

fn uninstall(configured: &Configured) -> Result<()> {
    let paths = Config::load_paths(&configured.config)?;
    if wait(uninstall::uninstall(&configured.config, &paths))? {
        println!("the data path is removed; each client is served by the controller that it dials");
    } else {
        println!("there was no data path");
    }
    Ok(())
}

fn wait<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("failed to start the runtime")?.block_on(work)
}
