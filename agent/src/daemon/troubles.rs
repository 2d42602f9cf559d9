//! What policy says and the kernel does not hold: kept for `status`, which calls nothing enforced of which a part is not.
use std::collections::BTreeMap;
use std::fmt::Display;

/// By what each is about. It is gone when the same has worked since.
#[derive(Debug, Default)]
pub(super) struct Troubles(BTreeMap<String, String>);

impl Troubles {
    /// Notes what came of something. What is new is logged.
    pub(super) fn note<T, E: Display>(&mut self, about: &str, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => {
                if self.0.remove(about).is_some() {
                    tracing::info!("{about}: in force again");
                }
                Some(value)
            }
            Err(error) => {
                self.add(about, error.to_string());
                None
            }
        }
    }

    /// Notes what is wrong.
    pub(super) fn add(&mut self, about: &str, why: String) {
        if self.0.get(about) != Some(&why) {
            tracing::error!("{about}: {why}");
            self.0.insert(about.to_owned(), why);
        }
    }

    /// Forgets all of which nothing is known any more.
    pub(super) fn keep(&mut self, is_known: impl Fn(&str) -> bool) {
        self.0.retain(|about, _| is_known(about));
    }

    /// All of them, for people.
    pub(super) fn all(&self) -> Vec<String> {
        let all = self.0.iter();
        all.map(|(about, why)| format!("{about}: {why}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_works_again_is_no_trouble() {
        let mut troubles = Troubles::default();
        assert_eq!(troubles.note("a", Err::<(), _>("full")), None);
        assert_eq!(troubles.note("b", Ok::<_, String>(1)), Some(1));
        assert_eq!(troubles.all(), ["a: full"]);
        troubles.note("a", Ok::<_, String>(()));
        assert!(troubles.all().is_empty());
        troubles.add("c", "no".to_owned());
        troubles.keep(|about| about != "c");
        assert!(troubles.all().is_empty());
    }
}
