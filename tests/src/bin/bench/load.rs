//! The load: as many requests as the other side answers within a time, over a fixed number of connections.
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fmt::{self, Display};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const HOST: &str = "api.orders.example";
/// Connections of every scenario.
const CONNECTIONS: usize = 16;
/// Streams at a time on each HTTP/2 connection.
const STREAMS: usize = 8;
/// Requests at most, so that memory stays bounded whatever the time.
const REQUESTS: usize = 2_000_000;
/// Largest response head that is read.
const HEAD: usize = 16 * 1024;

/// What is asked, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// HTTP/1.1, connections kept, GET of 200 bytes.
    KeepAlive,
    /// A new connection and TLS session for each GET.
    Connect,
    /// HTTP/2, streams side by side.
    Http2,
    /// HTTP/1.1, connections kept, POST of 4 KiB JSON.
    Post,
}

impl Scenario {
    pub(crate) const ALL: [Self; 4] = [Self::KeepAlive, Self::Connect, Self::Http2, Self::Post];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::KeepAlive => "HTTP/1.1 keep-alive, GET 200 B",
            Self::Connect => "new connection, GET 200 B",
            Self::Http2 => "HTTP/2, GET 200 B",
            Self::Post => "HTTP/1.1 keep-alive, POST 4 KiB",
        }
    }
}

/// One run of the generator; written and read as `SCENARIO:SECONDS`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) scenario: Scenario,
    pub(crate) seconds: u32,
}

impl Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.scenario, self.seconds)
    }
}

impl FromStr for Load {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let (name, seconds) = text.split_once(':').context("SCENARIO:SECONDS")?;
        let scenario = Scenario::ALL.into_iter().find(|s| format!("{s:?}") == name);
        let scenario = scenario.with_context(|| format!("no scenario {name}"))?;
        Ok(Self {
            scenario,
            seconds: seconds.parse()?,
        })
    }
}

/// What the generator saw; times in microseconds.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Seen {
    pub(crate) requests: usize,
    pub(crate) per_second: f64,
    pub(crate) p50: u32,
    pub(crate) p99: u32,
}

/// Makes the load and prints what it saw.
pub(crate) fn run(load: &Load) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let seen = runtime.block_on(generate(*load))?;
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

async fn generate(load: Load) -> Result<Seen> {
    let tls = Arc::new(tls(load.scenario == Scenario::Http2)?);
    // Addresses are looked up once: it is not the resolver that is measured.
    let address = tokio::net::lookup_host((HOST, 443))
        .await?
        .find(|a| a.is_ipv4());
    let to = Target {
        address: address.context("no address")?,
        tls: TlsConnector::from(tls),
    };
    let began = Instant::now();
    let until = began + Duration::from_secs(load.seconds.into());
    let workers: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let to = to.clone();
            tokio::spawn(async move {
                match load.scenario {
                    Scenario::KeepAlive => http1(&to, until, &get()).await,
                    Scenario::Post => http1(&to, until, &post()).await,
                    Scenario::Connect => connect(&to, until).await,
                    Scenario::Http2 => http2(&to, until).await,
                }
            })
        })
        .collect();
    let mut times = Vec::new();
    for worker in workers {
        times.extend(worker.await??);
    }
    let took = began.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or(0);
    ensure!(!times.is_empty(), "no request was answered");
    Ok(Seen {
        requests: times.len(),
        per_second: times.len() as f64 / took,
        p50: at(50),
        p99: at(99),
    })
}

#[derive(Clone)]
struct Target {
    address: std::net::SocketAddr,
    tls: TlsConnector,
}

impl Target {
    async fn open(&self) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(self
            .tls
            .connect(ServerName::try_from(HOST)?, stream)
            .await?)
    }
}

/// Trusts what `SSL_CERT_FILE` holds, and nothing else.
fn tls(http2: bool) -> Result<ClientConfig> {
    let file = std::env::var_os("SSL_CERT_FILE").context("SSL_CERT_FILE is not set")?;
    let mut roots = RootCertStore::empty();
    let certificates: Vec<_> = CertificateDer::pem_file_iter(&file)
        .map_err(|e| anyhow!("SSL_CERT_FILE: {e}"))?
        .collect::<Result<_, _>>()
        .map_err(|e| anyhow!("SSL_CERT_FILE: {e}"))?;
    roots.add_parsable_certificates(certificates);
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![if http2 {
        b"h2".to_vec()
    } else {
        b"http/1.1".to_vec()
    }];
    // A new connection is to cost what a first one costs.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn get() -> Vec<u8> {
    format!("GET /open/200 HTTP/1.1\r\nhost: {HOST}\r\n\r\n").into_bytes()
}

fn post() -> Vec<u8> {
    let body = format!(r#"{{"state":"open","note":"{}"}}"#, "n".repeat(4096 - 26));
    let head = format!(
        "POST /open/200 HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

async fn http1(to: &Target, until: Instant, request: &[u8]) -> Result<Vec<u32>> {
    let mut stream = to.open().await?;
    let mut times = Vec::new();
    while Instant::now() < until && times.len() < REQUESTS / CONNECTIONS {
        let began = Instant::now();
        stream.write_all(request).await?;
        stream.flush().await?;
        answer(&mut stream).await?;
        times.push(micros(began));
    }
    Ok(times)
}

async fn connect(to: &Target, until: Instant) -> Result<Vec<u32>> {
    let mut times = Vec::new();
    let request = get();
    while Instant::now() < until && times.len() < REQUESTS / CONNECTIONS {
        let began = Instant::now();
        let mut stream = to.open().await?;
        stream.write_all(&request).await?;
        stream.flush().await?;
        answer(&mut stream).await?;
        times.push(micros(began));
    }
    Ok(times)
}

/// Reads one response: its head, and as much body as it declares.
async fn answer(stream: &mut TlsStream<TcpStream>) -> Result<()> {
    let mut buffer = Vec::with_capacity(2048);
    let head = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        ensure!(buffer.len() < HEAD, "the response's head does not end");
        ensure!(
            stream.read_buf(&mut buffer).await? > 0,
            "the connection was closed"
        );
    };
    let text = String::from_utf8_lossy(buffer.get(..head).unwrap_or_default()).to_ascii_lowercase();
    if !text.starts_with("http/1.1 200") {
        bail!("answered {}", String::from_utf8_lossy(&buffer));
    }
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.context("no content-length")?.trim().parse()?;
    let mut left = (head + length).saturating_sub(buffer.len());
    let mut rest = [0; 4096];
    while left > 0 {
        let wanted = left.min(rest.len());
        let read = stream
            .read(rest.get_mut(..wanted).unwrap_or_default())
            .await?;
        ensure!(read > 0, "the body ends early");
        left -= read;
    }
    Ok(())
}

async fn http2(to: &Target, until: Instant) -> Result<Vec<u32>> {
    let (client, connection) = h2::client::handshake(to.open().await?).await?;
    let driver = tokio::spawn(connection);
    let streams: Vec<_> = (0..STREAMS)
        .map(|_| tokio::spawn(http2_stream(client.clone(), until)))
        .collect();
    let mut times = Vec::new();
    for stream in streams {
        times.extend(stream.await??);
    }
    driver.abort();
    Ok(times)
}

async fn http2_stream(client: h2::client::SendRequest<Bytes>, until: Instant) -> Result<Vec<u32>> {
    let mut times = Vec::new();
    while Instant::now() < until && times.len() < REQUESTS / CONNECTIONS / STREAMS {
        let began = Instant::now();
        let request = http::Request::get(format!("https://{HOST}/open/200")).body(())?;
        let mut ready = client.clone().ready().await?;
        let (response, _) = ready.send_request(request, true)?;
        let response = response.await?;
        ensure!(response.status() == 200, "answered {}", response.status());
        let mut body = response.into_body();
        while let Some(data) = body.data().await {
            let length = data?.len();
            body.flow_control().release_capacity(length)?;
        }
        times.push(micros(began));
    }
    Ok(times)
}

fn micros(began: Instant) -> u32 {
    u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX)
}
