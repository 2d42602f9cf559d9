//! What an upstream says on a WebSocket, on its way to the client: held to the size of all of it, values taken out, echoes of the
//! credential overwritten. As a response's body is, message by message.
use super::change::MASKED;
use super::screen::ResponseRules;
use crate::secrets::Masker;
use std::sync::Arc;
use tollgate_policy::{Pointer, Redactor};
use tungstenite::{Message, Utf8Bytes};

/// What the rule says of all messages of a socket.
pub(super) struct Heard {
    mask: Option<Arc<Masker>>,
    redact: Option<Redactor>,
    /// Bytes in all, and those still to come.
    max: Option<(u64, u64)>,
}

/// Why a message does not go on.
pub(super) enum Unheard {
    /// With it there are more than so many bytes.
    TooMuch(u64),
    /// Values have to be taken out of it, and cannot.
    Unreadable(String),
}

impl Heard {
    pub(super) fn of(rules: &ResponseRules<'_>) -> Self {
        Self {
            mask: rules.mask.clone(),
            redact: rules.redact.cloned(),
            max: rules.max.map(|max| (max, max)),
        }
    }

    /// The message as it may go on, and the names of what was taken out of it.
    pub(super) fn screen(&mut self, message: Message) -> Result<(Message, Vec<String>), Unheard> {
        let mut taken = Vec::new();
        let message = self.redacted(message, &mut taken)?;
        let message = self.masked(message, &mut taken);
        if let Some((max, left)) = &mut self.max {
            let rest = left.checked_sub(message.len() as u64);
            *left = rest.ok_or(Unheard::TooMuch(*max))?;
        }
        Ok((message, taken))
    }

    fn redacted(&self, message: Message, taken: &mut Vec<String>) -> Result<Message, Unheard> {
        let Some(redactor) = &self.redact else {
            return Ok(message);
        };
        let text = match &message {
            Message::Text(text) => text,
            Message::Binary(_) => return Err(Unheard::Unreadable("it is binary".into())),
            _ => return Ok(message),
        };
        let unreadable = |why: String| Unheard::Unreadable(format!("it is not plain JSON: {why}"));
        let redacted = redactor.redact(text.as_bytes());
        let Some(clean) = redacted.map_err(|e| unreadable(e.to_string()))?.body else {
            return Ok(message);
        };
        taken.extend(redactor.pointers().iter().map(Pointer::to_string));
        let clean = Utf8Bytes::try_from(clean).map_err(|e| unreadable(e.to_string()))?;
        Ok(Message::Text(clean))
    }

    fn masked(&self, message: Message, taken: &mut Vec<String>) -> Message {
        let Some(masker) = &self.mask else {
            return message;
        };
        let clean = match &message {
            Message::Text(text) => masker
                .mask(text.as_bytes())
                .and_then(|clean| Utf8Bytes::try_from(clean).ok())
                .map(Message::Text),
            Message::Binary(bytes) => masker
                .mask(bytes)
                .map(|clean| Message::Binary(clean.into())),
            _ => None,
        };
        match clean {
            Some(clean) => {
                taken.push(MASKED.to_owned());
                clean
            }
            None => message,
        }
    }
}
