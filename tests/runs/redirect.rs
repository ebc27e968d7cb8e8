//! `balancer redirect`: clients that follow redirects are spread without a relay, and strangers do not keep them out.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tests::cluster::{API_PORT, Cluster, ClusterOptions, is_even};
use tests::juju::fleet::Kind;
use tests::juju::libjuju::{Crowd, Libjuju};
use tests::juju::redirector::{Redirector, configure};
use tests::juju::tls::{self, Identity, SERVER_NAME};
use tests::network::namespace::Namespace;
use tests::support::eventually::{SOON, eventually};
use tests::support::limits::raise_open_files;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

const HALF_OPEN: usize = 10_000;

/// Starts three controllers that are configured to redirect, and the redirector of the first.
fn start(tag: &str, clients: usize) -> Result<(Cluster, Redirector)> {
    let options =
        ClusterOptions { balancer: false, clients, client_addresses: 50, ..ClusterOptions::new(tag) };
    let mut cluster = Cluster::start(options)?;
    let directory = cluster.directory().to_owned();
    cluster.start_balancers_as(|config| {
        let name = config.cluster.name.clone().unwrap_or_default();
        configure(config, &name, &directory).expect("files of a controller");
    })?;
    cluster.await_settled()?;
    let redirector = Redirector::start(&cluster.net.controllers[0], &cluster.daemons[0], &directory)?;
    eventually(SOON, "the redirector knows the controllers", || {
        let page = within(&cluster.net.clients[0].namespace, health(redirector.address))?;
        ensure!(page.starts_with("HTTP/1.1 200"), "{page}");
        Ok(())
    })?;
    Ok((cluster, redirector))
}

/// Runs `work` with the sockets of a namespace.
fn within<T: Send>(namespace: &Namespace, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    namespace.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { timeout(2 * SOON, work).await.context("no end within 20 s")? })
    })?
}

async fn dial(address: SocketAddr) -> Result<TlsStream<tokio::net::TcpStream>> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    Ok(TlsConnector::from(tls::client()?).connect(ServerName::try_from(SERVER_NAME)?, stream).await?)
}

async fn health(address: SocketAddr) -> Result<String> {
    let mut stream = dial(address).await?;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: juju-apiserver\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}

type Socket = WebSocketStream<TlsStream<tokio::net::TcpStream>>;

async fn connect(address: SocketAddr) -> Result<Socket> {
    Ok(client_async(format!("wss://{SERVER_NAME}/api"), dial(address).await?).await?.0)
}

async fn call(socket: &mut Socket, request: &str, params: Value) -> Result<Value> {
    let facade = if request == "Peer" { "Test" } else { "Admin" };
    let call = json!({ "request-id": 1, "type": facade, "version": 3, "request": request, "params": params });
    socket.send(Message::text(call.to_string())).await?;
    let answer = socket.next().await.context("no answer, it has hung up")??;
    Ok(serde_json::from_str(answer.to_text()?)?)
}

/// Ensures that the server hangs up.
async fn hangs_up(socket: &mut Socket) -> Result<()> {
    loop {
        match socket.next().await {
            None | Some(Err(_)) => return Ok(()),
            Some(Ok(message)) => ensure!(message.is_close(), "{message:?}"),
        }
    }
}

/// A client by the rules of Juju's own: it follows once, if the error brings no info, without user and password. Returns
/// the address that it ends at.
async fn follow(redirector: SocketAddr) -> Result<SocketAddr> {
    let mut socket = connect(redirector).await?;
    let user = json!({ "auth-tag": "user-admin", "credentials": "secret" });
    let login = call(&mut socket, "Login", user).await?;
    ensure!(login["error-code"] == "redirection required" && login.get("error-info").is_none(), "{login}");
    let info = call(&mut socket, "RedirectInfo", Value::Null).await?;
    let servers =
        info["response"]["servers"].as_array().context("servers")?.iter().filter_map(|one| one.as_array());
    let addresses = servers.flatten().map(|server| {
        ensure!(
            server["port"] == API_PORT && server["scope"].is_string() && server["type"].is_string(),
            "{server}"
        );
        let ip = server["value"].as_str().context("an address")?.parse()?;
        Ok(SocketAddr::new(ip, API_PORT))
    });
    let addresses: Vec<SocketAddr> = addresses.collect::<Result<_>>()?;
    ensure!(addresses.len() == 4, "two controllers with two addresses each: {info}");
    ensure!(info["response"]["ca-cert"].as_str().is_some_and(|pem| pem.contains("CERTIFICATE")), "{info}");
    let mut socket = connect(addresses[0]).await?;
    let login = call(&mut socket, "Login", json!({ "auth-tag": "" })).await?;
    ensure!(login["response"]["server-version"].is_string(), "{login}");
    Ok(addresses[0])
}

/// The counts, and that each client is where it dialled: at the API port itself, not behind a relay.
fn ensure_spread(cluster: &Cluster, crowd: &Crowd, count: usize) -> Result<Vec<usize>> {
    ensure!(crowd.failed.is_empty() && crowd.clients.len() == count, "{:?}", crowd.failed);
    let relayed = crowd.clients.iter().filter(|client| client.peer.local != client.endpoint).count();
    let counts = cluster.counts()?;
    println!("{count} clients: {counts:?}, {relayed} relayed");
    ensure!(relayed == 0, "{relayed} of {count} were relayed");
    Ok(counts)
}

#[test]
fn the_real_python_libjuju_is_spread_without_a_relay() -> Result<()> {
    let (mut cluster, redirector) = start("rdlib", 1)?;
    let authority = Identity::authority_file(cluster.directory());
    let mut libjuju = Libjuju::crowd(&cluster.net.clients[0].namespace, &authority)?;
    let begun = Instant::now();
    let crowd = libjuju.join(redirector.address, 300)?;
    println!("connected in {:.1} s", begun.elapsed().as_secs_f64());
    let counts = ensure_spread(&cluster, &crowd, 300)?;
    ensure!(counts.len() == 3 && counts.iter().sum::<usize>() == 300 && is_even(&counts), "{counts:?}");

    // A controller goes, its agent with it: new clients go to the other two.
    cluster.daemons[2].kill9();
    cluster.servers[2].kill9();
    let crowd = libjuju.join(redirector.address, 60)?;
    let after = ensure_spread(&cluster, &crowd, 60)?;
    ensure!(after[0] + after[1] == counts[0] + counts[1] + 60 && after[2] == 0, "{after:?}");

    // A drain, at once.
    cluster.daemons[1].operate(&["drain", "--within", "1h"])?;
    // The redirector asks twice a second.
    std::thread::sleep(Duration::from_secs(1));
    let crowd = libjuju.join(redirector.address, 20)?;
    ensure!(crowd.clients.iter().all(|client| client.endpoint == cluster.address(0)), "{crowd:?}");
    Ok(())
}

#[test]
fn a_client_by_the_rules_of_juju_follows_once_and_an_agent_is_told_why_not() -> Result<()> {
    let (mut cluster, redirector) = start("rdgo", 1)?;
    let address = redirector.address;
    let clients = &cluster.net.clients[0].namespace;
    let ended = within(clients, follow(address))?;
    ensure!(cluster.addresses().contains(&ended), "{ended}");
    within(clients, async {
        let mut socket = connect(address).await?;
        let refused = call(&mut socket, "Login", json!({ "auth-tag": "machine-0" })).await?;
        ensure!(refused["error-code"] == "not supported", "{refused}");
        ensure!(refused["error"].as_str().is_some_and(|text| text.contains("apiaddresses")), "{refused}");
        hangs_up(&mut socket).await
    })?;

    // Nobody has room, or the agent is silent: no redirect, but a word that makes clients try again.
    for daemon in &mut cluster.daemons {
        daemon.operate(&["bypass"])?;
    }
    let clients = &cluster.net.clients[0].namespace;
    let nobody = || {
        within(clients, async {
            let login =
                call(&mut connect(address).await?, "Login", json!({ "auth-tag": "user-admin" })).await?;
            ensure!(login["error-code"] == "try again", "{login}");
            let page = health(address).await?;
            ensure!(page.starts_with("HTTP/1.1 503"), "{page}");
            Ok(())
        })
    };
    eventually(SOON, "nobody is named while all are bypassed", nobody)?;
    for daemon in &cluster.daemons {
        daemon.operate(&["on"])?;
    }
    eventually(SOON, "named again", || within(clients, follow(address)))?;
    cluster.daemons[0].process()?.signal(nix::sys::signal::Signal::SIGSTOP)?;
    eventually(SOON, "nobody is named while the agent hangs", nobody)?;
    cluster.daemons[0].process()?.signal(nix::sys::signal::Signal::SIGCONT)?;
    eventually(SOON, "named again", || within(clients, follow(address))).map(drop)
}

/// Strangers that are connected and say little; each keeps its connection as long as the redirector lets it.
fn half_open(from: &Namespace, sources: &[SocketAddr], to: SocketAddr) -> Result<Vec<TcpStream>> {
    let sources = Arc::new(sources.to_vec());
    from.enter(move || {
        let mut held = Vec::new();
        for number in 0..HALF_OPEN {
            let domain = socket2::Domain::for_address(to);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
            socket.bind(&sources[number % sources.len()].into())?;
            socket.connect_timeout(&to.into(), SOON)?;
            let mut stream = TcpStream::from(socket);
            // The head of a TLS record, and the beginning of a ClientHello.
            let _cut = stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]);
            held.push(stream);
        }
        Ok(held)
    })?
}

#[test]
fn strangers_keep_nobody_out_and_the_agent_notices_nothing() -> Result<()> {
    raise_open_files()?;
    let (mut cluster, mut redirector) = start("rdbad", 2)?;
    let address = redirector.address;
    let sources = cluster.net.clients[1].addresses().into_iter().filter(std::net::IpAddr::is_ipv4);
    let sources: Vec<SocketAddr> = sources.map(|source| SocketAddr::new(source, 0)).collect();
    ensure!(sources.len() >= 50, "{sources:?}");
    let ran = cluster.daemons[0].process()?.ran()?.time;
    let begun = Instant::now();
    let held = half_open(&cluster.net.clients[1].namespace, &sources, address)?;
    println!("{} half-open handshakes in {:.1} s", held.len(), begun.elapsed().as_secs_f64());

    // While they are held, a client of another host is served, and one of the strangers' addresses, too.
    for clients in &cluster.net.clients {
        let asked = Instant::now();
        within(&clients.namespace, follow(address))?;
        println!("a client beside them: {} ms", asked.elapsed().as_millis());
    }
    // All dial one controller, and are spread by relays as ever.
    cluster.dial("beside", Kind::Single, 90)?;
    let counts = cluster.counts()?;
    println!("90 clients of one controller beside them: {counts:?}");
    ensure!(is_even(&counts), "{counts:?}");
    let (open, rss) =
        (held.iter().filter(|stream| is_open(stream)).count(), redirector.process().resident_bytes()?);
    println!("{open} are still open; {} KiB", rss / 1024);
    ensure!((1..=2_048).contains(&open) && rss < 128 << 20, "{open}, {rss}");
    eventually(SOON, "all are cut off", || {
        let open = held.iter().filter(|stream| is_open(stream)).count();
        ensure!(open == 0, "{open}");
        Ok(())
    })?;
    let (ran, lasted) = (cluster.daemons[0].process()?.ran()?.time.saturating_sub(ran), begun.elapsed());
    println!("the agent ran {ran:?} in {lasted:?}");
    ensure!(ran < lasted / 4, "the agent ran {ran:?} in {lasted:?}");

    let clients = &cluster.net.clients[0].namespace;
    let bad = ["{", "[]", r#"{"request-id":1}"#].map(Message::text);
    let long = format!(r#"{{"request-id":1,"type":"{}"}}"#, "x".repeat(200 << 10));
    for message in bad.into_iter().chain([Message::binary(vec![0; 9]), Message::text(long)]) {
        let shown = format!("{:.20}", message.to_string());
        within(clients, async {
            let mut socket = connect(address).await?;
            // One that is too long may be cut off before all is sent.
            drop(socket.send(message).await);
            hangs_up(&mut socket).await
        })
        .with_context(|| shown)?;
    }
    // Slow ones: no request after the handshake, and no call after the switch.
    for switches in [false, true] {
        let cut = within(clients, async {
            let asked = Instant::now();
            if switches {
                hangs_up(&mut connect(address).await?).await?;
            } else {
                drop(dial(address).await?.read_to_end(&mut Vec::new()).await);
            }
            Ok(asked.elapsed())
        });
        let cut = cut?;
        println!("a slow client is cut off after {cut:?}");
        ensure!((Duration::from_secs(4)..Duration::from_secs(15)).contains(&cut), "{cut:?}");
    }
    within(clients, follow(address)).map(drop)
}

fn is_open(stream: &TcpStream) -> bool {
    let nonblocking = stream.set_nonblocking(true).is_ok();
    let read = (&mut &*stream).read(&mut [0; 64]);
    nonblocking && read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}
