//! WebSockets: what a rule says of the messages that the client sends, and how a handshake is known.
//!
//! A handshake is decided on like any GET. Each message is decided on anew, with the handshake that opened the socket: a
//! rule allows it if both hold.
use crate::body::{BodyFault, BodySpec, Checked, Edited, Media};
use crate::model::{Headers, Message};
use crate::when::When;
use serde_json::Value;

/// What a rule says of messages.
#[derive(Debug)]
pub(crate) struct Messages {
    /// What each is like, where they are looked at; how long any may be.
    pub(crate) body: BodySpec,
    /// They are JSON texts that are looked at.
    pub(crate) looked_at: bool,
    /// Messages that are no text pass.
    pub(crate) binary: bool,
    pub(crate) when: Option<When>,
}

impl Messages {
    /// Holds a message against this, but for the condition. With what is to be sent instead, and the message as a tree where
    /// the condition looks at it.
    pub(crate) fn check(
        &self,
        message: Message<'_>,
    ) -> Result<(Option<Edited>, Option<Value>), BodyFault> {
        if message.len() > self.body.max {
            return Err(BodyFault::TooLarge(self.body.max));
        }
        let text = match message {
            Message::Binary(_) if self.binary => return Ok((None, None)),
            Message::Binary(_) => return Err(BodyFault::Type),
            Message::Text(_) if !self.looked_at => return Ok((None, None)),
            Message::Text(text) => text.as_bytes(),
        };
        let Checked { edits, tree } = self.body.check(Media::Json, text)?;
        if self.when.is_none() {
            return Ok((edits, None));
        }
        let sent = edits.as_ref().map_or(text, |edited| &edited.body);
        let tree = match tree {
            Some(tree) => tree,
            None => self.body.tree(Media::Json, sent)?,
        };
        Ok((edits, Some(tree)))
    }
}

/// Whether a request asks for a WebSocket (RFC 6455, section 4.2.1): the one `Upgrade` that is ever passed on.
pub fn is_websocket(headers: &dyn Headers) -> bool {
    let mut asked = false;
    headers.each("upgrade", &mut |value| {
        asked |= value.trim_ascii().eq_ignore_ascii_case(b"websocket");
    });
    asked
}
