//! The course of a demo: six scenes, each measured and drawn.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use balancer::operator::status::Status;
use balancer::operator::top;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use tokio::runtime::{Builder, Runtime};

use super::Arguments;
use super::figures::{DRAINED, Figures, KILLED, Outcome, Scene};
use super::film::Film;
use super::screen::Screen;
use super::view::{Controller, ROWS, View, draw};
use crate::cluster::status::seen;
use crate::cluster::{Cluster, ClusterOptions};
use crate::juju::fleet::{Dial, Dialled, How, Kind, Stats};
use crate::support::cleanup::is_stopped;

/// Between two looks at the counts.
pub const TICK: Duration = Duration::from_millis(200);
/// Between two samples of `balancer top`.
const SECOND: Duration = Duration::from_secs(1);
/// For the eye, at the end of a scene.
const PAUSE: Duration = Duration::from_secs(3);
/// A whole fleet dials in about so many seconds.
const FILL: usize = 7;
/// Balancers hear of a controller's state within this, on a busy machine too.
const STATE: Duration = Duration::from_secs(20);
/// Logins a second that the stand-in servers are said to take: a drain at jujud's pace takes minutes.
const LOGIN_RATE: i64 = 200;

/// The file's name, the picture's title, and the film.
pub type Films = [(&'static str, &'static str, Film); 2];

pub struct Course {
    screen: Screen,
    view: View,
    cluster: Cluster,
    runtime: Runtime,
    /// What `balancer top` shows at the controller that all clients dial.
    history: top::History,
    sampled: Option<Instant>,
    films: Films,
    pause: Duration,
    started: Instant,
    scene: Instant,
    /// The fleet's figures at the end of the scene before.
    before: Stats,
}

impl Course {
    pub fn start(arguments: &Arguments) -> Result<Self> {
        let started = Instant::now();
        let (controllers, clients) = (usize::from(arguments.controllers), usize::from(arguments.clients));
        // The others have ample room for the drained clients: a drain slows down where they come near their limits.
        let limit = clients / (controllers - 1) * 4 / 3 + 10;
        let mut options =
            ClusterOptions { balancer: false, nft: false, ..ClusterOptions::new(&arguments.tag) };
        (options.controllers, options.ipv6) = (controllers, arguments.ipv6);
        options.hard_limit = Some(limit as u64);
        options.policy.insert("login_rate".into(), LOGIN_RATE.into());
        let cluster = Cluster::start(options)?;
        let names: Vec<String> = cluster.net.controllers.iter().map(|host| host.name.clone()).collect();
        let view = View {
            scale: clients.max(limit),
            controllers: names
                .iter()
                .map(|name| Controller { name: name.clone(), ..Controller::default() })
                .collect(),
            figures: Figures {
                clients,
                controllers: names,
                ipv6: arguments.ipv6,
                limit,
                ..Figures::default()
            },
            ..View::default()
        };
        Ok(Self {
            screen: Screen::new(stdout().is_terminal()),
            view,
            cluster,
            runtime: Builder::new_current_thread().enable_all().build()?,
            history: top::History::default(),
            sampled: None,
            films: [
                ("demo.svg", "The demo of balancer", Film::default()),
                ("top.svg", "balancer top during the demo", Film::default()),
            ],
            pause: if arguments.quick { Duration::ZERO } else { PAUSE },
            started,
            scene: started,
            before: Stats::default(),
        })
    }

    pub fn run(mut self) -> Result<(Figures, Films)> {
        let (clients, limit) = (self.view.figures.clients, self.view.figures.limit);
        let name = |index: usize| self.view.figures.controllers[index].clone();
        let (a, b) = (name(KILLED), name(DRAINED));

        self.begin(
            Scene::AllOnOne,
            &format!("Without the balancer: {clients} clients dial {a}, the one controller that they know.\nThey stay there."),
        )?;
        let dialled = self.dial("without", Kind::Single, clients)?;
        self.end(outcome(clients, &dialled))?;

        self.begin(
            Scene::EvenedOut,
            &format!("Each controller has a balancer now. The same {clients} clients dial {a} again.\nThe balancer of {a} relays them by the counts of all."),
        )?;
        self.cluster.fleet.close(clients, How::Fin)?;
        self.watch(STATE, "every client gone", |course| match course.total() {
            0 => Ok(()),
            left => bail!("{left} left"),
        })?;
        self.cluster.start_balancers()?;
        self.await_ready()?;
        // These come back when they lose their connection.
        let dialled = self.dial("with", Kind::Libjuju, clients)?;
        self.end(outcome(clients, &dialled))?;

        self.begin(
            Scene::AgentKilled,
            &format!("kill -9 of the agent on {a}, while each client sends echoes and awaits answers.\nThe programs in the kernel go on; {b} finds the agent missing."),
        )?;
        self.cluster.fleet.traffic(SECOND)?;
        self.cluster.daemons[KILLED].kill9();
        self.watch(STATE, "the agent missed", |course| {
            let state = course.view.controllers[KILLED].state.clone();
            ensure!(state.as_deref().is_some_and(|state| state != "ready"), "{state:?}");
            Ok(())
        })?;
        let echoes = self.cluster.fleet.stats()?.echoes;
        let answered = self.watch(STATE, "answers without the agent", |course| {
            let answered = course.cluster.fleet.stats()?.echoes - echoes;
            ensure!(answered >= 2 * clients as u64, "{answered} answers");
            Ok(answered)
        })?;
        self.cluster.fleet.traffic(Duration::ZERO)?;
        self.view.text = format!(
            "{answered} echoes were answered without the agent.\nIt is started again, and takes over as if nothing had happened."
        );
        self.cluster.daemons[KILLED].run()?;
        self.await_ready()?;
        self.end(Outcome { answered, ..Outcome::default() })?;

        self.begin(
            Scene::Drain,
            &format!("balancer drain --within 4s on {b}: its clients are closed evenly, dial {a} again,\nand get to another one. (login_rate is {LOGIN_RATE}; jujud takes 4 logins a second.)"),
        )?;
        self.cluster.daemons[DRAINED].operate(&["drain", "--within", "4s"])?;
        self.watch(STATE * 2, "a drained controller, and its clients back", |course| {
            let left = course.view.controllers[DRAINED].clients;
            ensure!(left == 0 && course.total() == clients, "{:?}", course.view.controllers);
            Ok(())
        })?;
        self.end(Outcome::default())?;

        let more = limit * self.view.controllers.len() - clients + clients / 8;
        self.begin(
            Scene::Limit,
            &format!("{b} takes clients again (balancer resume), and {more} more dial {a}.\nEach controller admits {limit}; the rest is refused at once."),
        )?;
        self.cluster.daemons[DRAINED].operate(&["resume"])?;
        self.await_ready()?;
        let dialled = self.dial("limit", Kind::Single, more)?;
        self.end(outcome(more, &dialled))?;

        self.begin(Scene::Status, &format!("balancer status, as the operator of {a} sees it:"))?;
        let daemon = &self.cluster.daemons[KILLED];
        self.view.status = Some(daemon.judge(&["status"])?.1);
        let status = daemon.status()?;
        let count = |name: &String| -> Result<usize> {
            Ok(seen(&status, name)?["connections"].as_u64().context("a count")? as usize)
        };
        let counts = self.view.figures.controllers.iter().map(count).collect::<Result<_>>()?;
        self.end(Outcome { counts, ..Outcome::default() })?;
        self.finish()
    }

    fn begin(&mut self, scene: Scene, text: &str) -> Result<()> {
        (self.view.scene, self.view.text) = (scene, text.to_owned());
        self.scene = Instant::now();
        self.look()?;
        Ok(self.screen.begin(&self.view)?)
    }

    /// Ends a scene: fills in the figures of the fleet and the controllers, after a pause.
    fn end(&mut self, mut outcome: Outcome) -> Result<()> {
        self.view.refused += outcome.refused;
        let begun = Instant::now();
        let pause = self.pause;
        self.watch(pause + STATE, "a pause, and all clients back", |course| {
            ensure!(begun.elapsed() >= pause, "not over");
            let stats = course.cluster.fleet.stats()?;
            // A client that stays away is lost, as the table tells.
            ensure!(stats.lost == stats.reconnects || begun.elapsed() > pause + SECOND * 5, "{stats:?}");
            Ok(())
        })?;
        let stats = self.cluster.fleet.stats()?;
        outcome.scene = self.view.scene;
        outcome.moved = stats.reconnects - self.before.reconnects;
        outcome.lost = (stats.lost - self.before.lost).saturating_sub(outcome.moved);
        if outcome.counts.is_empty() {
            outcome.counts = self.view.controllers.iter().map(|one| one.clients).collect();
        }
        outcome.seconds = self.scene.elapsed().as_secs_f64();
        self.view.lost += outcome.lost;
        self.view.moved = stats.reconnects;
        self.before = stats;
        self.screen.end(&self.view)?;
        self.view.figures.scenes.push(outcome);
        Ok(())
    }

    /// The closing table, and the films.
    fn finish(mut self) -> Result<(Figures, Films)> {
        self.view.figures.seconds = self.started.elapsed().as_secs_f64();
        self.view.status = None;
        self.view.text = String::new();
        let _ = write!(self.view.text, "All six scenes in {:.0} s.", self.view.figures.seconds);
        std::thread::sleep(TICK * 3);
        self.look()?;
        self.screen.close(&self.view)?;
        Ok((self.view.figures, self.films))
    }

    fn total(&self) -> usize {
        self.view.controllers.iter().map(|one| one.clients).sum()
    }

    /// `count` clients dial the first controller.
    fn dial(&mut self, id: &str, kind: Kind, count: usize) -> Result<Dialled> {
        let mut dial = Dial::new(id, kind, count, &[self.cluster.address(KILLED)]);
        dial.rate = f64::from(u32::try_from(self.view.figures.clients / FILL)?.max(50));
        self.cluster.fleet.start_dial(&dial)?;
        // A slow machine may manage a hundred a second.
        let deadline = Duration::from_secs(60 + count as u64 / 100);
        self.watch(deadline, "every client's outcome", |course| {
            course.cluster.fleet.dialled(id, Duration::ZERO)
        })
    }

    /// Waits until every balancer sees every controller as ready, and knows how to relay to it.
    fn await_ready(&mut self) -> Result<()> {
        self.watch(STATE, "every controller ready", |course| {
            for index in 0..course.cluster.daemons.len() {
                let mut told = course.sample(index)?.controllers.into_iter();
                let unready = told.find(|one| one.state != "ready" || !["ok", "self"].contains(&&*one.relay));
                ensure!(unready.is_none(), "{unready:?}");
            }
            Ok(())
        })
    }

    /// Looks and draws until `probe` succeeds.
    fn watch<T>(
        &mut self,
        deadline: Duration,
        what: &str,
        mut probe: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        loop {
            ensure!(!is_stopped(), "stopped by a signal");
            self.look()?;
            self.screen.live(&self.view)?;
            let error = match probe(self) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if let Some(status) = self.cluster.fleet.process().exit_status()? {
                return Err(anyhow!("the fleet has ended with {status}"));
            }
            if begun.elapsed() >= deadline {
                return Err(error.context(format!("{what}: not within {deadline:?}")));
            }
            std::thread::sleep(TICK);
        }
    }

    /// Takes in the counts of the kernels and the states that a balancer sees, and records both screens.
    fn look(&mut self) -> Result<()> {
        self.view.elapsed = self.started.elapsed();
        // The drained controller's agent is never killed.
        let told = self.sample(DRAINED).ok();
        for (one, count) in self.view.controllers.iter_mut().zip(self.cluster.counts()?) {
            one.clients = count;
            let told = told.iter().flat_map(|status| &status.controllers).find(|told| told.name == one.name);
            one.state = told.map(|told| told.state.clone());
            one.limit = told.map(|told| told.limit as usize);
        }
        let elapsed = self.view.elapsed;
        let now = Instant::now();
        let is_due = self.sampled.is_none_or(|at| now.duration_since(at) >= SECOND);
        if is_due && !self.cluster.daemons.is_empty() {
            self.sampled = Some(now);
            let answer = self.sample(KILLED).map_err(|error| format!("{error:#}"));
            self.history.note(now, answer);
            let choices = top::Choices { colour: true, ..top::Choices::default() };
            let mut terminal = Terminal::new(TestBackend::new(80, 24))?;
            terminal.draw(|frame| top::draw(frame, &self.history, choices, now))?;
            self.films[1].2.note(elapsed, terminal.backend().buffer());
        }
        let mut terminal = Terminal::new(TestBackend::new(80, ROWS))?;
        terminal.draw(|frame| draw(frame, &self.view, true))?;
        self.films[0].2.note(elapsed, terminal.backend().buffer());
        Ok(())
    }

    fn sample(&self, index: usize) -> Result<Status> {
        let daemon = self.cluster.daemons.get(index).context("no balancers yet")?;
        let control = daemon.config.paths.control.as_ref().context("a control socket")?;
        self.runtime.block_on(top::sample(control))
    }
}

fn outcome(dialled: usize, found: &Dialled) -> Outcome {
    Outcome { dialled, opened: found.ok, refused: found.refused, ..Outcome::default() }
}
