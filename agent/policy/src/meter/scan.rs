//! Finds a few members of a JSON text as it passes, of any length, and keeps nothing else of it.
//!
//! This is no check: the text is the provider's, who counts. What is not JSON yields nothing, or less.
use serde_json::Value;

/// Bytes of a member that is kept at most.
const KEPT: usize = 16 * 1024;
/// Bytes of a name at most that could be one of those looked for.
const NAME: usize = 32;
/// Containers that are told apart; deeper ones are only counted.
const LEVELS: usize = 2;

/// Where a member stands that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// In the object that the text is, or in one of those of a list that the text is.
    Top,
    /// In `response` or `message` of that.
    Inner,
}

/// A member that was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) level: Level,
    /// `type`, `usage` or `usageMetadata`.
    pub(super) name: Name,
    pub(super) value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Type,
    Usage,
}

/// What a container on the way down is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    /// Members of it may be looked for.
    Object(Level),
    /// Elements of it may be such objects.
    List,
    Other,
}

#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The outermost containers that are open.
    open: [Option<Container>; LEVELS],
    depth: usize,
    in_text: bool,
    escaped: bool,
    /// The last text, as far as it could be a name; `None` once it is too long.
    text: Option<Vec<u8>>,
    /// The name of the member that is being read, at its depth.
    name: Vec<u8>,
    /// A member that is kept: where it stands, and its text so far.
    keeping: Option<Keeping>,
}

#[derive(Debug)]
struct Keeping {
    level: Level,
    name: Name,
    depth: usize,
    text: Vec<u8>,
}

impl Scan {
    /// Reads on; `found` gets each member that is whole.
    pub(super) fn feed(&mut self, bytes: &[u8], found: &mut dyn FnMut(Found)) {
        for byte in bytes {
            self.byte(*byte, found);
        }
    }

    fn byte(&mut self, byte: u8, found: &mut dyn FnMut(Found)) {
        if self.in_text {
            self.keep(byte);
            self.in_text(byte);
            return;
        }
        match byte {
            b',' | b'}' | b']' => self.ends(found),
            _ => {}
        }
        self.keep(byte);
        match byte {
            b'"' => {
                self.in_text = true;
                self.text = Some(Vec::new());
            }
            b':' => self.member(),
            b'{' | b'[' => self.enter(byte),
            b'}' | b']' => self.leave(),
            b',' => self.name.clear(),
            _ => {}
        }
    }

    fn in_text(&mut self, byte: u8) {
        if std::mem::take(&mut self.escaped) {
            // A name that is written with escapes is none that is looked for.
            return self.text = None;
        }
        match byte {
            b'\\' => self.escaped = true,
            b'"' => self.in_text = false,
            _ => match &mut self.text {
                Some(text) if text.len() < NAME => text.push(byte),
                text => *text = None,
            },
        }
    }

    /// The container that is open now, where it is one of the outermost.
    fn here(&self) -> Option<Container> {
        let at = self.depth.checked_sub(1)?;
        self.open.get(at).copied().flatten()
    }

    /// The text before a colon was a name.
    fn member(&mut self) {
        let name = self.text.take().unwrap_or_default();
        if let (None, Some(Container::Object(level))) = (&self.keeping, self.here()) {
            let known = match (level, name.as_slice()) {
                (_, b"usage" | b"usageMetadata") => Some(Name::Usage),
                (Level::Top, b"type") => Some(Name::Type),
                _ => None,
            };
            self.keeping = known.map(|name| Keeping {
                level,
                name,
                depth: self.depth,
                text: Vec::new(),
            });
        }
        self.name = name;
    }

    fn enter(&mut self, byte: u8) {
        let list = byte == b'[';
        let inner = matches!(self.name.as_slice(), b"response" | b"message");
        let container = match (self.depth, self.here()) {
            (0, _) if list => Container::List,
            (0, _) | (1, Some(Container::List)) if !list => Container::Object(Level::Top),
            (1, Some(Container::Object(Level::Top))) if inner && !list => {
                Container::Object(Level::Inner)
            }
            _ => Container::Other,
        };
        if let Some(slot) = self.open.get_mut(self.depth) {
            *slot = Some(container);
        }
        self.depth = self.depth.saturating_add(1);
        self.name.clear();
    }

    fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.name.clear();
    }

    fn keep(&mut self, byte: u8) {
        if let Some(keeping) = &mut self.keeping {
            if keeping.text.len() >= KEPT {
                self.keeping = None;
            } else {
                keeping.text.push(byte);
            }
        }
    }

    /// A value ends where its container goes on or ends.
    fn ends(&mut self, found: &mut dyn FnMut(Found)) {
        if self
            .keeping
            .as_ref()
            .is_none_or(|it| it.depth != self.depth)
        {
            return;
        }
        if let Some(it) = self.keeping.take()
            && let Ok(value) = serde_json::from_slice(&it.text)
        {
            found(Found {
                level: it.level,
                name: it.name,
                value,
            });
        }
    }
}
