//! The tokens that a provider says an answer took, read as the answer passes.
use super::Tokens;
use super::scan::{Found, Level, Name, Scan};
use crate::budget::Meter;
use serde_json::{Map, Value};

/// Bytes of a line's field name, and of what is compared of a line.
const BEGINNING: usize = 16;

/// An answer under way. Feed it all of the body, in clear.
#[derive(Debug)]
pub struct Answer {
    meter: Meter,
    events: Option<Lines>,
    scan: Scan,
    counts: Counts,
    /// The provider has said that nothing follows.
    last: bool,
}

impl Answer {
    /// Of this media type, which is that of the body: events, or one JSON text.
    pub fn new(meter: Meter, media: &str) -> Self {
        let kind = media.split(';').next().unwrap_or_default().trim();
        let events = kind.eq_ignore_ascii_case("text/event-stream");
        Self {
            meter,
            events: events.then(Lines::default),
            scan: Scan::default(),
            counts: Counts::default(),
            last: false,
        }
    }

    /// More of the body.
    pub fn feed(&mut self, bytes: &[u8]) {
        let Some(mut lines) = self.events.take() else {
            return self.json(bytes);
        };
        for byte in bytes {
            match lines.byte(*byte) {
                Line::Data(byte) => self.json(&[byte]),
                Line::Done => self.last |= self.meter == Meter::OpenAi,
                Line::Between => self.scan = Scan::default(),
                Line::Nothing => {}
            }
        }
        self.events = Some(lines);
    }

    /// What it took, once the provider has said all: of that, or of the body's end, the caller knows the latter.
    pub fn tokens(&self, ended: bool) -> Option<Tokens> {
        if !ended && !self.last {
            return None;
        }
        // A stream that only began says how long the request was, and not what followed.
        let whole = self.meter != Meter::Anthropic || self.counts.at_top;
        self.counts.tokens(self.meter).filter(|_| whole)
    }

    fn json(&mut self, bytes: &[u8]) {
        let (meter, counts, last) = (self.meter, &mut self.counts, &mut self.last);
        self.scan.feed(bytes, &mut |found| match found.name {
            Name::Type => *last |= ends(meter, &found.value),
            Name::Usage => counts.take(meter, &found),
        });
    }
}

/// Whether an event of this type is the last that tells.
fn ends(meter: Meter, kind: &Value) -> bool {
    let kind = kind.as_str().unwrap_or_default();
    match meter {
        Meter::OpenAi => [
            "response.completed",
            "response.incomplete",
            "response.failed",
        ]
        .contains(&kind),
        Meter::Anthropic => kind == "message_stop",
        Meter::Gemini => false,
    }
}

/// Events, line by line (WHATWG HTML, section 9.2.6): `data:` and what follows it.
#[derive(Debug, Default)]
struct Lines {
    /// The line's beginning.
    line: Vec<u8>,
    length: usize,
    /// The last byte was a CR.
    cr: bool,
}

enum Line {
    Data(u8),
    /// `data: [DONE]`
    Done,
    /// An empty line: the event is whole.
    Between,
    Nothing,
}

impl Lines {
    fn byte(&mut self, byte: u8) -> Line {
        if std::mem::replace(&mut self.cr, byte == b'\r') && byte == b'\n' {
            return Line::Nothing;
        }
        if matches!(byte, b'\r' | b'\n') {
            let line = std::mem::take(&mut self.line);
            return match (std::mem::take(&mut self.length), line.as_slice()) {
                (0, _) => Line::Between,
                (_, b"data: [DONE]" | b"data:[DONE]") => Line::Done,
                _ => Line::Nothing,
            };
        }
        self.length = self.length.saturating_add(1);
        if self.line.len() < BEGINNING {
            self.line.push(byte);
        }
        // The first bytes of the line are all there until its name is over.
        match self.line.strip_prefix(b"data:") {
            Some(rest) if !rest.is_empty() => Line::Data(byte),
            _ => Line::Nothing,
        }
    }
}

/// The largest that was said of each: a stream counts up as it goes.
#[derive(Debug, Default)]
struct Counts {
    any: bool,
    /// The usage stood at the top, not in the message that a stream begins with.
    at_top: bool,
    input: u64,
    cached: u64,
    cache_write: u64,
    output: u64,
    total: u64,
}

impl Counts {
    fn take(&mut self, meter: Meter, found: &Found) {
        let Some(usage) = found.value.as_object() else {
            return;
        };
        let said = match meter {
            Meter::OpenAi => Self::openai(usage),
            Meter::Anthropic => Self::anthropic(usage),
            Meter::Gemini => Self::gemini(usage),
        };
        let Some(said) = said else { return };
        self.any = true;
        self.at_top |= found.level == Level::Top;
        self.input = self.input.max(said.input);
        self.cached = self.cached.max(said.cached);
        self.cache_write = self.cache_write.max(said.cache_write);
        self.output = self.output.max(said.output);
        self.total = self.total.max(said.total);
    }

    fn openai(usage: &Map<String, Value>) -> Option<Self> {
        let input = first(usage, &["prompt_tokens", "input_tokens"])?;
        let details = ["prompt_tokens_details", "input_tokens_details"];
        let details = details
            .iter()
            .find_map(|name| usage.get(*name)?.as_object());
        Some(Self {
            input,
            cached: details.map_or(0, |details| count(details, "cached_tokens")),
            output: first(usage, &["completion_tokens", "output_tokens"]).unwrap_or(0),
            total: count(usage, "total_tokens"),
            ..Self::default()
        })
    }

    fn anthropic(usage: &Map<String, Value>) -> Option<Self> {
        let output = first(usage, &["output_tokens"])?;
        Some(Self {
            input: count(usage, "input_tokens"),
            cached: count(usage, "cache_read_input_tokens"),
            cache_write: count(usage, "cache_creation_input_tokens"),
            output,
            ..Self::default()
        })
    }

    fn gemini(usage: &Map<String, Value>) -> Option<Self> {
        let input = first(usage, &["promptTokenCount", "totalTokenCount"])?;
        let thoughts = count(usage, "thoughtsTokenCount");
        let tools = count(usage, "toolUsePromptTokenCount");
        Some(Self {
            input: input.saturating_add(tools),
            cached: count(usage, "cachedContentTokenCount"),
            output: count(usage, "candidatesTokenCount").saturating_add(thoughts),
            total: count(usage, "totalTokenCount"),
            ..Self::default()
        })
    }

    fn tokens(&self, meter: Meter) -> Option<Tokens> {
        // What Anthropic says of the cache comes besides; with the others it is a part of the input.
        let part = match meter {
            Meter::Anthropic => 0,
            Meter::OpenAi | Meter::Gemini => self.cached,
        };
        // Some leave thoughts out of the output, and none out of the total.
        let rest = self.total.saturating_sub(self.input);
        self.any.then_some(Tokens {
            input: self.input.saturating_sub(part),
            cached: self.cached,
            cache_write: self.cache_write,
            output: self.output.max(rest),
        })
    }
}

fn count(object: &Map<String, Value>, name: &str) -> u64 {
    object.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn first(object: &Map<String, Value>, names: &[&str]) -> Option<u64> {
    names.iter().find_map(|name| object.get(*name)?.as_u64())
}
