//! The two namespaces, the cable between them, and what stands on each side.
use crate::certs::ServerCa;
use crate::cleanup::Ground;
use crate::dns::{Answer, Dns};
use crate::events::Events;
use crate::netns::Holder;
use crate::nginx::Nginx;
use anyhow::{Context as _, Result};
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Where the client side asks for names.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);

/// A host that nginx serves, with the addresses that the DNS gives it.
#[derive(Debug, Clone, Copy)]
pub struct Site {
    /// Name, also in its certificate.
    pub host: &'static str,
    /// IPv4 address; it looks public, so that guards against private ones stay on.
    pub v4: Ipv4Addr,
    /// IPv6 address.
    pub v6: Ipv6Addr,
}

impl Site {
    /// The API that the demo's client may call, in part.
    pub const ORDERS: Self = Self {
        host: "api.orders.example",
        v4: Ipv4Addr::new(93, 184, 216, 34),
        v6: Ipv6Addr::new(0x2606, 0x2800, 0x220, 1, 0, 0, 0, 0x34),
    };
    /// An API next to it that it may not.
    pub const PAYROLL: Self = Self {
        host: "api.payroll.example",
        v4: Ipv4Addr::new(93, 184, 216, 35),
        v6: Ipv6Addr::new(0x2606, 0x2800, 0x220, 1, 0, 0, 0, 0x35),
    };
}

/// A standing world. Fields end in this order: servers before the namespaces they live in.
#[derive(Debug)]
pub struct World {
    /// The DNS server.
    pub dns: Dns,
    /// The source of `GET /v1/events`.
    pub events: Events,
    /// The API.
    pub nginx: Nginx,
    /// Who signed the API's certificates; no system trusts it.
    pub ca: ServerCa,
    /// The namespaces with nginx and the DNS.
    pub servers: Holder,
    /// The namespaces with the agent and its clients.
    pub clients: Holder,
    ground: Arc<Ground>,
}

impl World {
    /// A world with [`Site::ORDERS`] and [`Site::PAYROLL`].
    ///
    /// # Errors
    /// As [`World::with_sites`].
    pub fn new() -> Result<Self> {
        Self::with_sites(&[Site::ORDERS, Site::PAYROLL])
    }

    /// Makes the namespaces and starts everything in them; takes about a third of a second.
    ///
    /// # Errors
    /// Not root, or a program is missing: says which.
    pub fn with_sites(sites: &[Site]) -> Result<Self> {
        let ground = Ground::new()?;
        let servers = Holder::new(true)?;
        ground.holds(servers.inode()?)?;
        let clients = Holder::new(false)?;
        ground.holds(clients.inode()?)?;
        join(&clients, &servers, sites).context("cannot lay the cable (package iproute2)")?;
        furnish(&clients, ground.directory()).context("cannot mount the client side's files")?;

        let ca = ServerCa::new("Example Servers CA")?;
        std::fs::write(ground.directory().join("server-ca.pem"), ca.pem())?;
        let dns = Dns::start(&servers, RESOLVER)?;
        for site in sites {
            dns.set(
                site.host,
                Answer::Addresses(vec![site.v4.into(), site.v6.into()]),
            );
        }
        let events = Events::start(&servers)?;
        let nginx = Nginx::start(&servers, &ground.directory().join("nginx"), sites, &ca)?;
        Ok(Self {
            dns,
            events,
            nginx,
            ca,
            servers,
            clients,
            ground,
        })
    }

    /// `program`, to be started on the client side, not governed.
    pub fn client(&self, program: impl AsRef<OsStr>) -> Command {
        self.clients.command(program)
    }

    /// A directory for whatever the test needs; it goes with the world.
    pub fn directory(&self) -> &Path {
        self.ground.directory()
    }

    /// The certificate of the servers' CA, as a file.
    pub fn ca_file(&self) -> PathBuf {
        self.directory().join("server-ca.pem")
    }

    /// A directory in a BPF file system that only the client side sees, and that goes with it.
    pub fn pins(&self) -> PathBuf {
        self.directory().join("bpf/tollgate")
    }

    /// Shows a directory to the client side as `name` in [`World::directory`], so that programs of
    /// other users can read it wherever the repository is.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn show(&self, source: &Path, name: &str) -> Result<PathBuf> {
        let target = self.directory().join(name);
        std::fs::create_dir(&target)?;
        let (from, to) = (source.display(), target.display());
        self.clients
            .script(&format!("mount --bind '{from}' '{to}'"))?;
        Ok(target)
    }

    /// The resolver's address.
    pub fn resolver(&self) -> IpAddr {
        RESOLVER.into()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.ground.clear();
    }
}

/// A virtual cable, fixed neighbours (so that the wire is silent when nobody speaks), addresses, routes.
fn join(clients: &Holder, servers: &Holder, sites: &[Site]) -> Result<()> {
    let far = servers.pid();
    clients.script(&format!(
        "ip -batch - <<'end'
link add c0 address 02:00:00:00:00:01 type veth peer name s0 address 02:00:00:00:00:02 netns {far}
link set lo up
addr add 203.0.113.2/24 dev c0
addr add 2001:db8:1::2/64 dev c0 nodad
link set c0 addrgenmode none up
neigh replace 203.0.113.1 lladdr 02:00:00:00:00:02 dev c0 nud permanent
neigh replace {RESOLVER} lladdr 02:00:00:00:00:02 dev c0 nud permanent
neigh replace 2001:db8:1::1 lladdr 02:00:00:00:00:02 dev c0 nud permanent
route add default via 203.0.113.1
route add default via 2001:db8:1::1
end"
    ))?;
    let addresses: String = sites
        .iter()
        .map(|site| {
            format!(
                "addr add {}/32 dev lo\naddr add {}/128 dev lo nodad\n",
                site.v4, site.v6
            )
        })
        .collect();
    servers.script(&format!(
        "ip -batch - <<'end'
link set lo up
addr add 203.0.113.1/24 dev s0
addr add {RESOLVER}/24 dev s0
addr add 2001:db8:1::1/64 dev s0 nodad
link set s0 addrgenmode none up
neigh replace 203.0.113.2 lladdr 02:00:00:00:00:01 dev s0 nud permanent
neigh replace 2001:db8:1::2 lladdr 02:00:00:00:00:01 dev s0 nud permanent
{addresses}end"
    ))
}

/// The client side's own resolver settings and BPF file system, over the host's in its mount namespace.
fn furnish(clients: &Holder, directory: &Path) -> Result<()> {
    std::fs::create_dir(directory.join("bpf"))?;
    std::fs::write(
        directory.join("resolv.conf"),
        format!("nameserver {RESOLVER}\n"),
    )?;
    std::fs::write(
        directory.join("nsswitch.conf"),
        "passwd: files\ngroup: files\nhosts: files dns\n",
    )?;
    let at = directory.display();
    clients.script(&format!(
        "mount --bind {at}/resolv.conf /etc/resolv.conf
         mount --bind {at}/nsswitch.conf /etc/nsswitch.conf
         mount -t bpf bpf {at}/bpf"
    ))
}
