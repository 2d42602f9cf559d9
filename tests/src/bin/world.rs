//! Stands a world up and waits: to look around in, and to be killed by a test.
//!
//! Prints its directory and the inodes of its network namespaces on the first line.

fn main() -> anyhow::Result<()> {
    let world = harness::World::new()?;
    let (servers, clients) = (&world.servers, &world.clients);
    println!(
        "{} {} {}",
        world.directory().display(),
        servers.inode()?,
        clients.inode()?
    );
    println!("clients: nsenter --target {} --net --mount", clients.pid());
    println!("servers: nsenter --target {} --net --mount", servers.pid());
    loop {
        std::thread::park();
    }
}
