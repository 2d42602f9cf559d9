//! A real nginx: a small JSON API over TLS, and a log of exactly what reached it.
use crate::certs::{CertificateFiles, ServerCa};
use crate::events;
use crate::netns::Holder;
use crate::world::Site;
use anyhow::{Context as _, Result, bail};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// What `/open/user` serves, compressed to whom that is fine.
pub const USER: &str =
    "{ \"id\": 7,\n  \"user\": {\"email\": \"ann@acme.example\", \"name\": \"Ann\"} }\n";

/// One request as nginx logged it.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Request {
    /// Host asked for.
    pub host: String,
    /// Method.
    pub method: String,
    /// Path and query as they came.
    pub target: String,
    /// Protocol, e.g. `HTTP/2.0`.
    pub protocol: String,
    /// Status answered.
    pub status: u16,
    /// Bytes of the request: line, headers and body.
    pub request_length: u64,
    /// The Authorization header; empty if there was none.
    pub authorization: String,
    /// The Cookie header; empty if there was none.
    pub cookie: String,
    /// `https` or `http`.
    pub scheme: String,
    /// Bytes of the answer: head and body.
    pub bytes_sent: u64,
}

/// The running server.
#[derive(Debug)]
pub struct Nginx {
    master: Child,
    directory: PathBuf,
}

impl Nginx {
    /// Starts it in the holder's namespaces: port 443 for each site, port 80 for all.
    ///
    /// # Errors
    /// nginx is not installed or refuses to start; says what it logged.
    pub fn start(holder: &Holder, directory: &Path, sites: &[Site], ca: &ServerCa) -> Result<Self> {
        std::fs::create_dir_all(directory.join("temp"))?;
        std::fs::write(directory.join("big"), vec![b'x'; 1 << 20])?;
        std::fs::write(directory.join("user"), USER)?;
        let mut servers = String::new();
        for site in sites {
            let files = ca.issue(&[site.host], directory)?;
            servers.push_str(&server(site, &files));
        }
        let settings = directory.join("nginx.conf");
        std::fs::write(&settings, settings_text(directory, &servers))?;
        let program = if Path::new("/usr/sbin/nginx").exists() {
            "/usr/sbin/nginx"
        } else {
            "nginx"
        };
        let master = holder
            .command(program)
            .arg("-p")
            .arg(directory)
            .arg("-c")
            .arg(&settings)
            .arg("-e")
            .arg(directory.join("error.log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start nginx (package nginx-light)")?;
        let mut nginx = Self {
            master,
            directory: directory.to_owned(),
        };
        let ready = crate::eventually(Duration::from_secs(10), || {
            let ended = nginx.master.try_wait().ok().flatten().is_some();
            (ended || holder.listens(443)).then_some(!ended)
        });
        if ready != Some(true) {
            bail!("nginx does not serve: {}", nginx.errors());
        }
        Ok(nginx)
    }

    /// Every request so far, in the order they ended.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let text = std::fs::read_to_string(self.directory.join("access.log"))?;
        // The last line may be half written.
        let whole = text
            .rfind('\n')
            .and_then(|end| text.get(..end))
            .unwrap_or_default();
        whole
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("log line {line}")))
            .collect()
    }

    /// Waits until there are more than `before` requests, and gives those that are new.
    ///
    /// # Errors
    /// None came within two seconds.
    pub fn requests_after(&self, before: usize) -> Result<Vec<Request>> {
        crate::eventually(Duration::from_secs(2), || {
            let new = self.requests().ok()?.split_off(before);
            (!new.is_empty()).then_some(new)
        })
        .context("nginx logged no request")
    }

    /// What nginx complained of.
    pub fn errors(&self) -> String {
        std::fs::read_to_string(self.directory.join("error.log")).unwrap_or_default()
    }

    /// Pid of the master process, in the host's numbering.
    pub fn pid(&self) -> u32 {
        self.master.id()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The workers end with the pid namespace that the holder owns.
        let _ = self.master.kill();
        let _ = self.master.wait();
    }
}

fn settings_text(directory: &Path, servers: &str) -> String {
    let at = directory.display();
    let mut temporary = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(temporary, "    {kind}_temp_path {at}/temp/{kind};");
    }
    format!(
        r#"daemon off;
worker_processes 1;
pid {at}/nginx.pid;
user root;
events {{ worker_connections 1024; }}
http {{
{temporary}
    log_format story escape=json '{{"host":"$host","method":"$request_method","target":"$request_uri",'
        '"protocol":"$server_protocol","status":$status,"request_length":$request_length,'
        '"authorization":"$http_authorization","cookie":"$http_cookie","scheme":"$scheme","bytes_sent":$bytes_sent}}';
    access_log {at}/access.log story;
    default_type application/json;
    keepalive_requests 100000000;
    http2_max_concurrent_streams 128;
    server_tokens off;
{servers}
    server {{
        listen 80 default_server;
        listen [::]:80 default_server;
        location = /open/export {{ alias {at}/big; }}
        # Only what is to be proxied is read, and with it counted.
        location = /open/import {{
            proxy_pass http://127.0.0.1/taken;
            proxy_method GET;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
        }}
        location = /taken {{ access_log off; return 204; }}
        location / {{ return 200 '{{"served":"in clear"}}\n'; }}
    }}
}}
"#
    )
}

fn server(site: &Site, files: &CertificateFiles) -> String {
    let Site { host, v4, v6 } = site;
    let (certificate, key) = (files.certificate.display(), files.key.display());
    let directory = files
        .certificate
        .parent()
        .unwrap_or(Path::new("/"))
        .display();
    let events = events::PORT;
    format!(
        r#"    server {{
        listen {v4}:443 ssl http2;
        listen [{v6}]:443 ssl http2;
        server_name {host};
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        set $credential $http_authorization;
        if ($uri ~ ^/open/) {{ set $credential none-needed; }}
        if ($credential = "") {{ return 401 '{{"error":"no credential"}}\n'; }}
        location = /v1/orders {{
            return 200 '{{"orders":[{{"id":7,"state":"open"}},{{"id":8,"state":"closed"}}]}}\n';
        }}
        location ~ ^/v1/orders/(?<id>\d+)$ {{
            if ($request_method = DELETE) {{ return 204; }}
            return 200 '{{"id":$id,"state":"open"}}\n';
        }}
        location = /v1/events {{
            proxy_pass http://127.0.0.1:{events};
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
        location = /v1/export {{ alias {directory}/big; }}
        location ~ ^/open/user {{
            alias {directory}/user;
            gzip on;
            gzip_min_length 1;
            gzip_types application/json;
        }}
        location = /open/200 {{
            return 200 '{body}';
        }}
        location / {{ return 200 '{{"host":"{host}","path":"$uri"}}\n'; }}
    }}
"#,
        body = "x".repeat(200),
    )
}
