//! A TCP proxy between a replica and one of its servers, with weather: cut, frozen, slow, dripping, silent, torn.
//!
//! Where the server is one of several, it is a load balancer: who connects gets the first that takes connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::Rng as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// What sessions end their transactions with.
const COMMIT: &[u8] = b"COMMIT";
/// Chunks on their way in one direction.
const ON_THE_WAY: usize = 256;
/// How long a torn connection stays open, so that the garbage is read before the end of the stream.
const TORN_FOR: Duration = Duration::from_millis(200);
const DRIPS_EACH_SECOND: usize = 8;

/// What holds until it is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    Clear,
    /// Nobody gets through, and every connection ends.
    Closed,
    /// Connections are accepted and then nothing happens; older ones end.
    Silent,
    /// Connections stay, nothing passes.
    Frozen,
    /// Nothing passes from the replica to its server.
    FrozenUp,
    /// Nothing passes from the server to its replica.
    FrozenDown,
    /// Each way takes 200 ms, more or less 100 ms.
    Slow,
    /// So many bytes a second, each way of each connection.
    Drip(usize),
}

/// What happens once, to every connection there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strike {
    /// An orderly end of the stream, wherever it is.
    Cut,
    /// A TCP reset.
    Reset,
    /// Bytes that belong to no protocol, in the middle of a frame.
    Garbage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// A port of its own in front of a server, or of several.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    sky: Arc<Sky>,
}

struct Sky {
    weather: watch::Sender<Weather>,
    struck: watch::Sender<(u64, Strike)>,
    /// Freeze the way down as soon as a COMMIT was forwarded.
    hold_commit: AtomicBool,
    connections: AtomicU64,
}

impl Proxy {
    /// In front of the first of these ports that takes connections.
    pub(crate) async fn before(targets: &[u16]) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let sky = Arc::new(Sky {
            weather: watch::Sender::new(Weather::Clear),
            struck: watch::Sender::new((0, Strike::Cut)),
            hold_commit: AtomicBool::new(false),
            connections: AtomicU64::new(0),
        });
        let (shared, targets): (_, Arc<[u16]>) = (sky.clone(), targets.into());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(attend(client, targets.clone(), shared.clone()));
            }
        });
        Ok(Self { port, sky })
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.sky.weather.send_replace(weather);
    }

    pub(crate) fn strike(&self, strike: Strike) {
        self.sky.struck.send_modify(|struck| *struck = (struck.0 + 1, strike));
    }

    /// Lets the next COMMIT through, and nothing back from then on.
    pub(crate) fn hold_next_commit(&self) {
        self.sky.hold_commit.store(true, Ordering::SeqCst);
    }

    pub(crate) fn weather(&self) -> Weather {
        *self.sky.weather.borrow()
    }

    /// How often somebody connected.
    pub(crate) fn connections(&self) -> u64 {
        self.sky.connections.load(Ordering::SeqCst)
    }
}

impl Weather {
    fn holds(self, way: Way) -> bool {
        match self {
            Self::Frozen => true,
            Self::FrozenUp => way == Way::Up,
            Self::FrozenDown => way == Way::Down,
            _ => false,
        }
    }

    fn ends_connections(self) -> bool {
        matches!(self, Self::Closed | Self::Silent)
    }

    fn delay(self) -> Duration {
        if self == Self::Slow { Duration::from_millis(rand::rng().random_range(100..=300)) } else { Duration::ZERO }
    }
}

async fn attend(mut client: TcpStream, targets: Arc<[u16]>, sky: Arc<Sky>) {
    sky.connections.fetch_add(1, Ordering::SeqCst);
    let mut weather = sky.weather.subscribe();
    let now = *weather.borrow_and_update();
    match now {
        Weather::Closed => return,
        Weather::Silent => {
            // Whoever waits for us is let go with the weather; a watch that ends says the same.
            let _ = weather.wait_for(|w| *w != Weather::Silent).await;
            return;
        }
        _ => {}
    }
    let Some(mut server) = first_that_answers(&targets).await else { return };
    let mut struck = sky.struck.subscribe();
    struck.mark_unchanged();
    let strike = tokio::select! {
        () = forward(&mut client, &mut server, &sky) => return,
        _ = weather.wait_for(|w| w.ends_connections()) => return,
        Ok(()) = struck.changed() => struck.borrow().1,
    };
    match strike {
        Strike::Cut => {}
        // A connection that is gone needs no reset.
        Strike::Reset => drop(client.set_zero_linger()),
        Strike::Garbage => {
            // A connection that is gone reads no garbage.
            let _ = client.write_all(b"\xff\x00garbage in the middle of a frame\xce\x01").await;
            tokio::time::sleep(TORN_FOR).await;
        }
    }
}

async fn first_that_answers(targets: &[u16]) -> Option<TcpStream> {
    for target in targets {
        if let Ok(server) = TcpStream::connect(("127.0.0.1", *target)).await {
            return Some(server);
        }
    }
    None
}

async fn forward(client: &mut TcpStream, server: &mut TcpStream, sky: &Sky) {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    // Whichever side ends takes the other with it.
    tokio::select! {
        () = pump(&mut from_client, &mut to_server, Way::Up, sky) => {}
        () = pump(&mut from_server, &mut to_client, Way::Down, sky) => {}
    }
}

/// Reading goes on while what was read waits for its time: latency, not a smaller throughput.
async fn pump(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>, way: Way, sky: &Sky) {
    let (hand_on, mut handed) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    let mut weather = sky.weather.subscribe();
    let read = async move {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + sky.weather.borrow().delay();
            if hand_on.send((due, buffer[..n].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some((due, bytes)) = handed.recv().await {
            tokio::time::sleep_until(due).await;
            if weather.wait_for(|w| !w.holds(way)).await.is_err() {
                return;
            }
            if way == Way::Up && has_commit(&bytes) && sky.hold_commit.swap(false, Ordering::SeqCst) {
                sky.weather.send_replace(Weather::FrozenDown);
            }
            if !deliver(to, &bytes, sky).await {
                return;
            }
        }
    };
    tokio::join!(read, write);
}

async fn deliver(to: &mut WriteHalf<'_>, bytes: &[u8], sky: &Sky) -> bool {
    let weather = *sky.weather.borrow();
    let Weather::Drip(each_second) = weather else { return to.write_all(bytes).await.is_ok() };
    for drop in bytes.chunks((each_second / DRIPS_EACH_SECOND).max(1)) {
        if to.write_all(drop).await.is_err() {
            return false;
        }
        if matches!(*sky.weather.borrow(), Weather::Drip(_)) {
            tokio::time::sleep(Duration::from_secs(1) / u32::try_from(DRIPS_EACH_SECOND).unwrap_or(1)).await;
        }
    }
    true
}

fn has_commit(bytes: &[u8]) -> bool {
    bytes.windows(COMMIT.len()).any(|window| window == COMMIT)
}
