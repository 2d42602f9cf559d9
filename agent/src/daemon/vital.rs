//! What the agent cannot do without. Where such a part has panicked, the agent would go on and say that it is whole; it ends instead,
//! which denies, and the service manager starts it anew. Whoever can bring that about again and again has all that is governed
//! refused; the other way, what comes new to the host would not be governed. What one connection, one request of an administrator
//! or one reload panics with ends that alone: what was in force stays.
use super::agent::{Agent, lock};
use crate::pipeline::Plane;

/// Does what blocks on a thread for that. `None`: it panicked.
pub(super) async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.inspect_err(|error| tracing::error!("{what} failed: {error}"))
        .ok()
}

impl Agent {
    /// A thread that has ended though nobody asked it to.
    pub(super) fn ended(&self) -> Option<&'static str> {
        let is_broken = lock(&self.plane).as_ref().is_some_and(Plane::broken);
        first([
            (is_broken, "a thread of the data plane ended"),
            (
                self.namespaces.has_ended(),
                "the thread for network namespaces ended",
            ),
            (
                self.containers.has_ended(),
                "the thread that asks for containers ended",
            ),
            (
                self.log.has_ended(),
                "the thread that writes the decision log ended",
            ),
        ])
    }
}

fn first<const N: usize>(threads: [(bool, &'static str); N]) -> Option<&'static str> {
    let mut ended = threads.into_iter().filter(|(has_ended, _)| *has_ended);
    ended.next().map(|(_, what)| what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_panics_is_told_apart_from_what_is_done() {
        assert_eq!(blocking("it", || 7).await, Some(7));
        let failed = blocking("it", || -> u8 { std::panic::resume_unwind(Box::new(())) });
        assert_eq!(failed.await, None);
    }

    #[test]
    fn any_thread_that_ended_is_named() {
        assert_eq!(first([(false, "one"), (false, "other")]), None);
        assert_eq!(first([(false, "one"), (true, "other")]), Some("other"));
    }
}
