//! Bounds that both sides rely on.

/// Deepest cgroup level that can be governed, exclusive: one bit each in `Scope::levels`.
pub const MAX_LEVEL: u32 = 32;
/// Path components kept of an executable, from the file upward.
pub const PATH_PARTS: usize = 8;
/// Bytes of one path component, with its closing NUL; longer ones are cut.
pub const PART_BYTES: usize = 48;
/// Executables whose paths are kept.
pub const MAX_PATHS: u32 = 4_096;
/// Bytes of a workload's name, padded with NUL.
pub const NAME_BYTES: usize = 64;
/// Cgroup subtrees under governance at once.
pub const MAX_GOVERNED: u32 = 65_536;
/// Workloads ever named in one instance.
pub const MAX_WORKLOADS: u32 = 16_384;
/// Ports that workloads may listen on, together.
pub const MAX_LISTEN: u32 = 16_384;
/// Unix sockets that workloads may speak to, together.
pub const MAX_SOCKET_NAMES: u32 = 65_536;
/// Connections from before their workload was governed that go on.
pub const MAX_KEPT: u32 = 65_536;
/// Bytes of a Unix socket's name, padded with NUL.
pub const SOCKET_NAME_BYTES: usize = 108;
/// Connections that their clients have closed and the agent has not asked for yet; the latest are kept.
pub const MAX_ORPHANS: u32 = 16_384;
/// Network namespaces with listeners of the agent at once.
pub const MAX_NAMESPACES: u32 = 4_096;
/// Network namespaces without, of which it is remembered that the agent was told.
pub const MAX_STRANGERS: u32 = 1_024;
/// Queries for names on their way to the agent at once.
pub const MAX_QUERIES: u32 = 16_384;
/// Bytes of the event ring.
pub const EVENT_BYTES: u32 = 1 << 20;
