//! A query, read strictly, and what is answered to it. Pure: bytes in, bytes out.
use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::opt::EdnsOption;
use hickory_resolver::proto::rr::rdata::{A, AAAA};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::net::IpAddr;
use tollgate_policy::canonical::Host;

/// Bytes of a query at most: a name, its type and EDNS options take far less.
pub(super) const QUERY: usize = 4096;
/// A header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;
/// What every client takes over UDP.
const PLAIN: usize = 512;
/// What is sent over UDP at most, to a client that says it takes so much: no path cuts it up.
const UDP: u16 = 1232;
/// Extended DNS Errors (RFC 8914): the option, and the code "Blocked".
const EXTENDED_ERROR: (u16, [u8; 2]) = (15, [0, 15]);
/// Bytes of an explanation at most.
const WHY: usize = 200;

/// What came of reading.
#[derive(Debug)]
pub(super) enum Read {
    /// A question.
    Asked(Box<Question>),
    /// One that is answered to nobody, with this, and why, for people.
    Refused(Box<Question>, Vec<u8>, &'static str),
    /// Something else, to be answered with this.
    Answer(Vec<u8>),
    /// Nothing that may be answered.
    Ignore,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Addresses of IPv4.
    A,
    /// Addresses of IPv6.
    Aaaa,
    /// Anything else: there is none.
    Other,
}

/// How an answer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Udp,
    Tcp,
}

/// What is answered.
#[derive(Debug)]
pub(super) enum Answer<'a> {
    /// These addresses, to be kept for so many seconds; none: the name is there and has none of the kind.
    Addresses(&'a [IpAddr], u32),
    /// There is no such name.
    NoName,
    /// Policy does not let it be looked up: for its user there is no such name. And why, for people.
    Refused(&'a str),
    /// It could not be found out.
    Failed,
}

/// One question of one query.
#[derive(Debug)]
pub(super) struct Question {
    id: u16,
    recursion_desired: bool,
    /// The name as it was asked for: clients compare its case.
    query: Query,
    /// Bytes that the client takes over UDP, if it speaks EDNS.
    edns: Option<u16>,
}

/// Reads a query. What could be an answer is ignored: two servers would answer each other for ever.
pub(super) fn read(bytes: &[u8]) -> Read {
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        return Read::Ignore;
    };
    let [id1, id2, flags, ..] = *header;
    let id = u16::from_be_bytes([id1, id2]);
    if flags & 0x80 != 0 {
        return Read::Ignore;
    }
    let code = OpCode::from_u8(flags >> 3 & 0x0f);
    if code != OpCode::Query {
        return error(id, code, ResponseCode::NotImp);
    }
    match Message::from_vec(bytes) {
        Ok(message) if message.metadata.message_type == MessageType::Query => single(message),
        _ => error(id, code, ResponseCode::FormErr),
    }
}

/// One question, no answers, of the internet.
fn single(message: Message) -> Read {
    let (id, code) = (message.metadata.id, message.metadata.op_code);
    let recursion_desired = message.metadata.recursion_desired;
    let edns = message.edns.as_ref().map(Edns::max_payload);
    let version = message.edns.as_ref().map_or(0, Edns::version);
    let extra = !message.answers.is_empty() || !message.authorities.is_empty();
    let mut queries = message.queries.into_iter();
    let (Some(query), None, false) = (queries.next(), queries.next(), extra) else {
        return error(id, code, ResponseCode::FormErr);
    };
    let question = Question {
        id,
        recursion_desired,
        query,
        edns,
    };
    let kind = question.query.query_type();
    if version > 0 {
        question.refuse(ResponseCode::BADVERS, "of EDNS, version 0 is spoken")
    } else if question.query.query_class() != DNSClass::IN {
        question.refuse(ResponseCode::Refused, "names of the internet are looked up")
    } else if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
        question.refuse(ResponseCode::Refused, "no zone is transferred")
    } else if question.query.name().is_root() {
        question.refuse(ResponseCode::Refused, "the root is no host")
    } else {
        Read::Asked(Box::new(question))
    }
}

fn error(id: u16, code: OpCode, response: ResponseCode) -> Read {
    Message::error_msg(id, code, response)
        .to_vec()
        .map_or(Read::Ignore, Read::Answer)
}

impl Question {
    /// The host that is asked about; `None` where the name is none that an api could have.
    pub(super) fn host(&self) -> Option<Host> {
        let name = self.query.name();
        let mut text = String::with_capacity(name.len());
        for label in name.iter() {
            if !text.is_empty() {
                text.push('.');
            }
            // A dot within a label must not become one between two.
            let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
            if !label.iter().all(plain) {
                return None;
            }
            text.push_str(std::str::from_utf8(label).ok()?);
        }
        let host = Host::parse(&text).ok()?;
        host.ip().is_none().then_some(host)
    }

    /// The name for the log: what is not plain in it is escaped.
    pub(super) fn name(&self) -> String {
        let mut name = self.query.name().to_ascii();
        if name.len() > 1 && name.ends_with('.') {
            name.pop();
        }
        name
    }

    /// The type for the log.
    pub(super) fn kind_name(&self) -> String {
        self.query.query_type().to_string()
    }

    pub(super) fn kind(&self) -> Kind {
        match self.query.query_type() {
            RecordType::A => Kind::A,
            RecordType::AAAA => Kind::Aaaa,
            _ => Kind::Other,
        }
    }

    fn refuse(self, code: ResponseCode, why: &'static str) -> Read {
        match self.respond(code).to_vec() {
            Ok(bytes) => Read::Refused(Box::new(self), bytes, why),
            Err(_) => Read::Ignore,
        }
    }

    /// The answer's bytes, cut as the client and the way ask for. `None`: it cannot be written.
    pub(super) fn answer(&self, answer: &Answer<'_>, over: Over) -> Option<Vec<u8>> {
        let mut message = self.respond(match answer {
            Answer::Addresses(..) => ResponseCode::NoError,
            Answer::NoName | Answer::Refused(_) => ResponseCode::NXDomain,
            Answer::Failed => ResponseCode::ServFail,
        });
        match answer {
            Answer::Addresses(addresses, seconds) => {
                message.add_answers(self.records(addresses, *seconds));
            }
            Answer::Refused(why) => explain(&mut message, why),
            Answer::NoName | Answer::Failed => {}
        }
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= self.limit(over) {
            return Some(bytes);
        }
        // The client asks again over TCP.
        message.answers.clear();
        message.metadata.truncation = true;
        message.to_vec().ok()
    }

    fn limit(&self, over: Over) -> usize {
        match (over, self.edns) {
            (Over::Tcp, _) => usize::from(u16::MAX),
            (Over::Udp, Some(taken)) => usize::from(taken.min(UDP)).max(PLAIN),
            (Over::Udp, None) => PLAIN,
        }
    }

    fn records(&self, addresses: &[IpAddr], seconds: u32) -> Vec<Record> {
        let name: &Name = self.query.name();
        let data = |address: &IpAddr| match address {
            IpAddr::V4(v4) => RData::A(A(*v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(*v6)),
        };
        let records = addresses.iter().map(data);
        records
            .map(|data| Record::from_rdata(name.clone(), seconds, data))
            .collect()
    }

    fn respond(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP);
            message.set_edns(edns);
        }
        message
    }
}

/// Says why, to a client that speaks EDNS.
fn explain(message: &mut Message, why: &str) {
    let Some(edns) = &mut message.edns else {
        return;
    };
    let mut end = why.len().min(WHY);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    let (option, code) = EXTENDED_ERROR;
    let mut data = code.to_vec();
    data.extend_from_slice(why.as_bytes().get(..end).unwrap_or_default());
    edns.options_mut().insert(EdnsOption::Unknown(option, data));
}

#[cfg(test)]
mod tests;
