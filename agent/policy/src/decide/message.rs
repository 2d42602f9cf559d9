//! Messages on a WebSocket: held against the rules under which it could be opened.
use super::{Ask, Failure, Held};
use crate::body::{Edited, Media};
use crate::model::{Body, Request};
use crate::policy::{Policy, RuleData};
use crate::when::When;
use serde_json::Value;

impl Policy {
    /// Holds the message, if there is one, of a WebSocket that the rule lets open. With what is to be sent instead.
    pub(super) fn hold_message<'a>(
        &self,
        rule: &'a RuleData,
        ask: &Ask<'_>,
    ) -> Result<Option<Edited>, Failure<'a>> {
        let (Body::Message(message), Some(messages)) = (ask.request.body, &rule.websocket) else {
            return Ok(None);
        };
        let (edits, tree) = messages.check(message).map_err(Failure::Message)?;
        match (&messages.when, tree) {
            (Some(when), Some(tree)) => self.must_hold_of(rule, when, ask, &tree)?,
            // A message that is not looked at passes no condition.
            (Some(when), None) => return Err(Failure::MessageCondition(when.text(), None)),
            (None, _) => {}
        }
        Ok(edits)
    }

    fn must_hold_of<'a>(
        &self,
        rule: &'a RuleData,
        when: &'a When,
        ask: &Ask<'_>,
        tree: &Value,
    ) -> Result<(), Failure<'a>> {
        let failed = |trouble| Err(Failure::MessageCondition(when.text(), trouble));
        match self.condition(rule, when, ask, Some((Media::Json, tree))) {
            Ok(true) => Ok(()),
            Ok(false) => failed(None),
            Err(trouble) => failed(Some(trouble)),
        }
    }

    /// How long a message on the WebSocket that is asked for may be by this rule, whose route matches, if it lets it open.
    pub(super) fn message_length(&self, rule: &RuleData, ask: &Ask<'_>) -> Option<usize> {
        let messages = rule.websocket.as_ref()?;
        let request = Request {
            body: Body::Absent,
            ..*ask.request
        };
        let handshake = Ask {
            subject: ask.subject,
            request: &request,
            websocket: ask.websocket,
            caller: ask.caller,
            trees: super::Trees::default(),
        };
        let opens = matches!(self.hold(rule, &handshake), Held::Yes(_));
        opens.then_some(messages.body.max)
    }
}
