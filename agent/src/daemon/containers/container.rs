//! What is known of a container, and what selectors say of it.
use super::super::cgroups;
use std::collections::BTreeMap;
use tollgate_policy::Selector;

/// Characters of one fact that a person is shown.
const SHOWN: usize = 64;

/// What an engine says of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::daemon) struct Container {
    pub(super) name: Option<String>,
    /// All that it calls the image.
    pub(super) images: Vec<String>,
    /// Its own, and those of its pod; of two with one name its own.
    pub(super) labels: BTreeMap<String, String>,
    /// Why it may have others besides; `None`: these are all.
    pub(super) unsure: Option<String>,
}

/// Does a selector mean it?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) enum Held {
    Yes,
    No,
    /// By what is known it may.
    Unknown,
}

impl Container {
    /// Does a selector mean this container, which has this cgroup, whatever it says of processes?
    pub(in crate::daemon) fn is_selected(&self, selector: &Selector, cgroup: &str) -> Held {
        let rest = Selector {
            container: None,
            labels: Vec::new(),
            ..selector.clone()
        };
        let in_cgroup = rest.unit.is_none() && rest.cgroup.is_none();
        let named = selector.container.as_deref();
        if !selector.is_of_containers()
            || named.is_some_and(|pattern| self.fitting(pattern).is_none())
            || !(in_cgroup || cgroups::selects(&rest, cgroup))
        {
            return Held::No;
        }
        let held = selector.labels.iter().map(|label| self.has(label));
        held.fold(Held::Yes, |all, one| match (all, one) {
            (Held::No, _) | (_, Held::No) => Held::No,
            (Held::Yes, Held::Yes) => Held::Yes,
            _ => Held::Unknown,
        })
    }

    fn has(&self, (name, pattern): &(String, String)) -> Held {
        match (self.labels.get(name), &self.unsure) {
            (Some(value), _) if cgroups::segment_matches(pattern, value) => Held::Yes,
            (Some(_), _) | (None, None) => Held::No,
            (None, Some(_)) => Held::Unknown,
        }
    }

    /// With a `/`, `:` or `@` it is an image that is meant, else a name.
    fn fitting(&self, pattern: &str) -> Option<&str> {
        let fits = |text: &&String| cgroups::segment_matches(pattern, text);
        match pattern.contains(['/', ':', '@']) {
            true => self.images.iter().find(fits),
            false => self.name.as_ref().filter(fits),
        }
        .map(String::as_str)
    }

    /// What of it a selector means, for a person.
    pub(super) fn evidence(&self, selector: &Selector) -> String {
        let short = |text: &str| -> String { text.chars().take(SHOWN).collect() };
        let pattern = selector.container.as_deref();
        let named = pattern.and_then(|pattern| self.fitting(pattern));
        let named = named.map_or("container".to_owned(), |text| {
            format!("container {}", short(text))
        });
        let labels = selector.labels.iter().filter_map(|(name, _)| {
            let value = self.labels.get(name)?;
            Some(format!("{name}={}", short(value)))
        });
        match labels.collect::<Vec<_>>().join(" ") {
            labels if labels.is_empty() => named,
            labels => format!("{named}, labels {labels}"),
        }
    }
}

/// An image's name without a tag means the one called `latest`.
pub(super) fn tagged(image: String) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.contains([':', '@']) {
        true => image,
        false => format!("{image}:latest"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(unsure: Option<&str>) -> Container {
        let labels = [("app", "web"), ("empty", "")];
        Container {
            name: Some("web-1".to_owned()),
            images: vec!["registry.example:5000/app:2".to_owned()],
            labels: labels.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
            unsure: unsure.map(str::to_owned),
        }
    }

    fn selector(container: Option<&str>, labels: &[(&str, &str)]) -> Selector {
        let labels = labels.iter();
        Selector {
            container: container.map(str::to_owned),
            labels: labels
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
            ..Selector::default()
        }
    }

    #[test]
    fn names_and_images_are_told_from_each_other() {
        for (pattern, held) in [
            ("web-*", Held::Yes),
            ("web", Held::No),
            ("registry.example:5000/app:*", Held::Yes),
            ("*/app:2", Held::Yes),
            ("app:2", Held::No),
        ] {
            let selector = selector(Some(pattern), &[]);
            // Whether labels are known has no weight where none are asked for.
            for container in [container(None), container(Some("x"))] {
                assert_eq!(container.is_selected(&selector, "/c"), held, "{pattern}");
            }
        }
        assert_eq!(tagged("r:5000/a/b".to_owned()), "r:5000/a/b:latest");
        assert_eq!(tagged("a/b@sha256:1".to_owned()), "a/b@sha256:1");
    }

    #[test]
    fn a_label_that_may_be_there_is_neither_held_nor_not() {
        use Held::{No, Unknown, Yes};
        for (name, labels, [known, unsure]) in [
            (None, &[("app", "w*")][..], [Yes, Yes]),
            (None, &[("app", "w")], [No, No]),
            (None, &[("empty", "")], [Yes, Yes]),
            (None, &[("empty", "?*")], [No, No]),
            (None, &[("tier", "*")], [No, Unknown]),
            (None, &[("app", "web"), ("tier", "a")], [No, Unknown]),
            (None, &[("app", "db"), ("tier", "a")], [No, No]),
            (Some("web-*"), &[("tier", "a")], [No, Unknown]),
            // Another's whatever its labels are.
            (Some("db"), &[("tier", "a")], [No, No]),
        ] {
            let selector = selector(name, labels);
            assert_eq!(
                container(None).is_selected(&selector, "/c"),
                known,
                "{labels:?}"
            );
            assert_eq!(
                container(Some("x")).is_selected(&selector, "/c"),
                unsure,
                "{labels:?}"
            );
        }
        let elsewhere = Selector {
            cgroup: Some("/a/**".to_owned()),
            ..selector(None, &[("tier", "a")])
        };
        assert_eq!(container(Some("x")).is_selected(&elsewhere, "/c"), No);
        assert_eq!(
            container(Some("x")).is_selected(&elsewhere, "/a/c"),
            Unknown
        );
        assert_eq!(container(None).is_selected(&Selector::default(), "/c"), No);
    }

    #[test]
    fn evidence_is_what_the_container_has() {
        let both = selector(Some("*/app:2"), &[("app", "*")]);
        let told = container(None).evidence(&both);
        assert_eq!(
            told,
            "container registry.example:5000/app:2, labels app=web"
        );
        let labels = selector(None, &[("app", "*")]);
        assert_eq!(
            container(None).evidence(&labels),
            "container, labels app=web"
        );
    }
}
