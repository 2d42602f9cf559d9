//! As much of YAML as the corpora need.
use saphyr_parser::{Event, Parser};

#[derive(Debug, Clone)]
pub(super) enum Yaml {
    Text(String),
    List(Vec<Yaml>),
    Map(Vec<(String, Yaml)>),
}

impl Yaml {
    pub(super) fn parse(text: &str) -> Self {
        let mut events = Parser::new_from_str(text)
            .map(|event| event.expect("a corpus is valid YAML").0)
            .filter(|event| {
                !matches!(
                    event,
                    Event::Nothing | Event::StreamStart | Event::DocumentStart(_)
                )
            });
        let first = events.next().expect("a corpus is not empty");
        Self::node(first, &mut events)
    }

    fn node<'a>(first: Event<'a>, events: &mut impl Iterator<Item = Event<'a>>) -> Self {
        match first {
            Event::Scalar(text, ..) => Self::Text(text.into_owned()),
            Event::SequenceStart(..) => {
                let mut list = Vec::new();
                loop {
                    match events.next() {
                        Some(Event::SequenceEnd) => return Self::List(list),
                        event => list.push(Self::node(event.unwrap(), events)),
                    }
                }
            }
            Event::MappingStart(..) => {
                let mut map = Vec::new();
                loop {
                    match events.next() {
                        Some(Event::MappingEnd) => return Self::Map(map),
                        key => {
                            let Self::Text(key) = Self::node(key.unwrap(), events) else {
                                panic!("a key that is no text")
                            };
                            let value = events.next().unwrap();
                            map.push((key, Self::node(value, events)));
                        }
                    }
                }
            }
            Event::StreamEnd => Self::Map(Vec::new()),
            other => panic!("{other:?} in a corpus"),
        }
    }

    pub(super) fn at(&self, key: &str) -> Option<&Self> {
        self.map()
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value)
    }

    /// Text at a key; empty where there is none.
    pub(super) fn text_at(&self, key: &str) -> &str {
        match self.at(key) {
            Some(Self::Text(text)) => text,
            _ => "",
        }
    }

    pub(super) fn list(&self) -> &[Self] {
        match self {
            Self::List(list) => list,
            _ => &[],
        }
    }

    pub(super) fn map(&self) -> &[(String, Self)] {
        match self {
            Self::Map(map) => map,
            _ => &[],
        }
    }
}
