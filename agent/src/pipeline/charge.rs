//! What a request takes of budgets: reserved once it is allowed, before anything of it is sent.
//!
//! Every budget that fits must have room. What was reserved lives in the request's tracker: given back where nothing was
//! sent, settled where the answer says what it took, and spent otherwise.
use super::account::Tracker;
use super::authorize::Held;
use super::body::{Counted, Gauge};
use super::hold;
use super::parse::Parsed;
use super::refuse::Refusal;
use super::short;
use super::worker::Worker;
use crate::budget::{Line, Lines, Reservation, Short, Unit};
use crate::snapshot::Snapshot;
use bytes::Bytes;
use http::header;
use http_body::Body as _;
use smallvec::SmallVec;
use tollgate_policy::meter::{Answer, Call, Rates, Tokens};
use tollgate_policy::{Budget, Decision, Meter, Mode, Price, Subject};

/// Bytes of a request to a model at most, where what it may take has to be known.
const MOST: usize = 16 << 20;

/// What a request has reserved.
#[derive(Debug, Default)]
pub(super) struct Charge {
    holds: SmallVec<[Reservation; 4]>,
    /// How its answer is read, and what its model costs.
    meter: Option<(Meter, Option<Rates>)>,
    answer: Option<Box<Answer>>,
    /// The upstream's status says that nothing was done.
    failed: bool,
    /// Something of it is on its way.
    pub(super) sent: bool,
}

impl Charge {
    /// How the answer tells what it took.
    pub(super) fn meter(&self) -> Option<Meter> {
        self.meter.map(|(meter, _)| meter)
    }

    /// The answer begins.
    pub(super) fn listen(&mut self, media: &str, failed: bool) {
        self.failed = failed;
        self.answer = self
            .meter()
            .map(|meter| Box::new(Answer::new(meter, media)));
    }

    /// A part of the answer, in clear.
    pub(super) fn heard(&mut self, data: &[u8]) {
        if let Some(answer) = &mut self.answer {
            answer.feed(data);
        }
    }

    /// The answer cannot be read: what was reserved stays spent.
    pub(super) fn deaf(&mut self) {
        self.answer = None;
    }

    /// Nothing more comes; `ended`: since that was all.
    pub(super) fn close(&mut self, ended: bool) {
        if !self.sent {
            // Dropping gives back.
            return self.holds.clear();
        }
        let answer = self.answer.take();
        let tokens = answer.as_ref().and_then(|answer| answer.tokens(ended));
        let nothing = (answer.is_some() && ended && self.failed).then(Tokens::default);
        let taken = tokens.or(nothing);
        let rates = self.meter.and_then(|(_, rates)| rates);
        for hold in self.holds.drain(..) {
            match (hold.unit(), taken, rates) {
                (Unit::Tokens, Some(taken), _) => hold.settle(taken.total()),
                (Unit::Usd, Some(taken), Some(rates)) => hold.settle(taken.cost(&rates)),
                _ => hold.keep(),
            }
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.close(false);
    }
}

/// What is asked, as far as budgets look at it.
pub(super) struct Asked<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) subject: Subject<'a>,
    pub(super) parsed: &'a Parsed,
}

/// Reserves what an allowed request may take. Reads the body where that has to be known, and returns what there is of it.
pub(super) async fn charge(
    worker: &Worker,
    asked: &Asked<'_>,
    decision: &Decision<'_>,
    held: Held,
    tracker: &mut Tracker,
) -> Result<Held, Refusal> {
    let found = Charging::new(asked.snapshot, asked.subject, decision)?;
    let Some(mut charging) = found else {
        return Ok(held);
    };
    charging.admit(tracker)?;
    let Some(meter) = charging.meter(asked.parsed, decision) else {
        charging.done(tracker);
        return Ok(held);
    };
    if let Err(why) = readable(asked.parsed) {
        charging.unmetered(why, tracker)?;
        charging.done(tracker);
        return Ok(held);
    }
    let held = match &decision.plan.body {
        Some(_) => held,
        None => whole(worker, held, tracker).await?,
    };
    let body = match (&decision.plan.body, &held) {
        (Some(edited), _) => edited.as_slice(),
        (None, Held::Read(bytes, None)) => bytes,
        (None, Held::Nothing) => &[],
        (None, _) => {
            charging.unmetered("its body is larger than 16 MiB", tracker)?;
            charging.done(tracker);
            return Ok(held);
        }
    };
    // The body may have taken long to come: what it takes is of the window of now.
    charging.now = now();
    match meter.call(&asked.parsed.target().path, body) {
        Ok(call) => charging.call(meter, &call, tracker)?,
        Err(why) => charging.unmetered(why, tracker)?,
    }
    charging.done(tracker);
    Ok(held)
}

/// Counts a connection that is not inspected.
pub(super) fn connection(
    snapshot: &Snapshot,
    subject: Subject<'_>,
    mode: Mode,
    tracker: &mut Tracker,
) -> Result<(), Refusal> {
    let found = Charging::of(snapshot, subject, mode == Mode::Observe)?;
    if let Some(mut charging) = found {
        charging.admit(tracker)?;
        charging.done(tracker);
    }
    Ok(())
}

/// Why what a request may take cannot be told from its head on.
fn readable(parsed: &Parsed) -> Result<(), &'static str> {
    if parsed.websocket.is_some() {
        return Err("it opens a WebSocket, on which calls are not counted");
    }
    let codings = parsed.headers.get_all(header::CONTENT_ENCODING).iter();
    let mut codings = codings.filter(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
    match codings.next() {
        Some(_) => Err("its body is compressed"),
        None if is_partial(parsed) => {
            Err("it asks for some fields of the answer, which need not be those that tell")
        }
        None => Ok(()),
    }
}

/// Whether it asks Google for chosen fields of the answer only.
fn is_partial(parsed: &Parsed) -> bool {
    let fields = |name: &str| name.trim_start_matches('$').eq_ignore_ascii_case("fields");
    let target = parsed.target();
    parsed.headers.contains_key("x-goog-fieldmask") || target.pairs().any(|pair| fields(&pair.name))
}

/// All of the body, as far as it is held.
async fn whole(worker: &Worker, held: Held, tracker: &Tracker) -> Result<Held, Refusal> {
    let (head, mut rest) = match held {
        Held::Nothing | Held::Read(_, None) => return Ok(held),
        Held::Read(head, Some(rest)) => (head, rest),
        // So long that it need not be read to know.
        Held::Waiting(body) if body.size_hint().lower() > MOST as u64 => {
            return Ok(Held::Waiting(body));
        }
        Held::Waiting(body) => {
            let moved = std::rc::Rc::clone(&tracker.moved);
            let rest = Counted::new(body, moved, worker.shared.limits.body_idle);
            (Bytes::new(), rest)
        }
    };
    let mut all = hold::Held::new(&worker.shared.room);
    all.extend(&head).map_err(|_| short::full())?;
    drop(head);
    while let Some(frame) = std::future::poll_fn(|cx| rest.poll_frame(cx)).await {
        let frame = frame.map_err(super::authorize::unreadable)?;
        if let Ok(data) = frame.into_data() {
            all.extend(&data).map_err(|_| short::full())?;
            if all.len() > MOST {
                return Ok(Held::Read(all.into_bytes(), Some(rest)));
            }
        }
    }
    Ok(Held::Read(all.into_bytes(), None))
}

fn now() -> u64 {
    u64::try_from(super::now()).unwrap_or(0)
}

/// A request on its way through the budgets that fit it.
struct Charging<'p> {
    snapshot: &'p Snapshot,
    budgets: SmallVec<[(&'p Budget, &'p Lines); 4]>,
    /// What is over a limit is only observed.
    soft: bool,
    now: u64,
    charge: Charge,
}

impl<'p> Charging<'p> {
    fn new(
        snapshot: &'p Snapshot,
        subject: Subject<'p>,
        decision: &Decision<'_>,
    ) -> Result<Option<Self>, Refusal> {
        let soft = decision.effective_mode(snapshot.mode) == Mode::Observe;
        Self::of(snapshot, subject, soft)
    }

    /// `None` where no budget fits.
    fn of(
        snapshot: &'p Snapshot,
        subject: Subject<'p>,
        soft: bool,
    ) -> Result<Option<Self>, Refusal> {
        let mut budgets = SmallVec::new();
        for (number, budget) in snapshot.policy.budgets_for(subject) {
            let lines = snapshot.accounts.of((number, budget), &subject);
            budgets.push((budget, lines.ok_or_else(short::unknown)?));
        }
        let none = budgets.is_empty();
        Ok((!none).then(|| Self {
            snapshot,
            budgets,
            soft,
            now: now(),
            charge: Charge::default(),
        }))
    }

    fn limit(&self, line: &Line) -> Option<u64> {
        (!self.soft).then_some(line.quota.amount)
    }

    /// One request more, and whether bytes are left.
    fn admit(&mut self, tracker: &mut Tracker) -> Result<(), Refusal> {
        let mut gauged = SmallVec::new();
        for place in 0..self.budgets.len() {
            let Some((budget, lines)) = self.budgets.get(place).copied() else {
                break;
            };
            if place == 0 {
                tracker.budgeted(&budget.name);
            }
            if let Some(line) = &lines.requests {
                self.reserve((budget, line), 1, None, tracker)?;
            }
            if let Some(line) = &lines.bytes {
                if let Err(short) = line.account.open(line.quota.amount, self.now) {
                    self.over((budget, line), None, short, tracker)?;
                }
                gauged.push(line.clone());
            }
        }
        if !gauged.is_empty() {
            let read = tracker.moved.up.get();
            let gauge = Gauge::new(gauged, self.soft);
            // What was read for a rule has come already.
            let counted = if read > 0 { gauge.count(read) } else { Ok(()) };
            if let (Err(spent), false) = (counted, self.soft) {
                return Err(short::overspent(&spent));
            }
            tracker.moved.gauge(gauge);
        }
        Ok(())
    }

    /// How calls of this request are counted, where they are.
    fn meter(&self, parsed: &Parsed, decision: &Decision<'_>) -> Option<Meter> {
        let meter = decision.plan.api.and_then(|api| api.meter)?;
        let wanted = self.budgets.iter().any(|(_, lines)| lines.metered());
        let path = parsed.target().path;
        // To open a WebSocket is a GET, and no end of calls.
        let free = meter.is_free(parsed.method.as_str(), &path) && parsed.websocket.is_none();
        (wanted && !free).then_some(meter)
    }

    /// What a call to a model may take.
    fn call(&mut self, meter: Meter, call: &Call, tracker: &mut Tracker) -> Result<(), Refusal> {
        let price = call.model.as_deref();
        let price = price.and_then(|model| self.snapshot.policy.price(model));
        let rates = price.map(Rates::from);
        let most = call.most(price);
        for place in 0..self.budgets.len() {
            let Some((budget, lines)) = self.budgets.get(place).copied() else {
                break;
            };
            if let Some(line) = &lines.tokens {
                let ask = Some((call, most.total()));
                self.reserve((budget, line), most.total(), ask, tracker)?;
            }
            match (&lines.usd, &rates) {
                (Some(line), Some(rates)) => {
                    let ask = Some((call, most.total()));
                    self.reserve((budget, line), most.cost(rates), ask, tracker)?;
                }
                (Some(_), None) => self.unpriced(budget, call, price, tracker)?,
                (None, _) => {}
            }
        }
        self.charge.meter = Some((meter, rates));
        Ok(())
    }

    fn reserve(
        &mut self,
        (budget, line): (&Budget, &Line),
        amount: u64,
        call: Option<(&Call, u64)>,
        tracker: &mut Tracker,
    ) -> Result<(), Refusal> {
        let (account, limit) = (&line.account, self.limit(line));
        let taken = account.reserve(amount, Some(line.quota.amount), self.now);
        let taken = match (taken, limit) {
            (Err(short), None) => {
                self.over(
                    (budget, line),
                    call.map(|call| (call, amount)),
                    short,
                    tracker,
                )?;
                account.reserve(amount, None, self.now)
            }
            (taken, _) => taken,
        };
        match taken {
            Ok(reservation) => {
                self.charge.holds.push(reservation);
                Ok(())
            }
            Err(short) => self.over(
                (budget, line),
                call.map(|call| (call, amount)),
                short,
                tracker,
            ),
        }
    }

    /// Not enough is left: a refusal, or a note where that is only observed.
    fn over(
        &self,
        (budget, line): (&Budget, &Line),
        call: Option<((&Call, u64), u64)>,
        short: Short,
        tracker: &mut Tracker,
    ) -> Result<(), Refusal> {
        let refusal = short::exhausted(budget, line, call, short, self.now);
        self.refuse(budget, refusal, tracker)
    }

    fn refuse(
        &self,
        budget: &Budget,
        refusal: Refusal,
        tracker: &mut Tracker,
    ) -> Result<(), Refusal> {
        tracker.budgeted(&budget.name);
        if self.soft {
            tracker.would_limit(&refusal);
            return Ok(());
        }
        Err(refusal)
    }

    /// What it takes cannot be told.
    fn unmetered(&self, why: &str, tracker: &mut Tracker) -> Result<(), Refusal> {
        let mut metered = self.budgets.iter().filter(|(_, lines)| lines.metered());
        let Some((budget, _)) = metered.next() else {
            return Ok(());
        };
        let refusal = short::unmetered(budget, why);
        self.refuse(budget, refusal, tracker)
    }

    fn unpriced(
        &self,
        budget: &Budget,
        call: &Call,
        price: Option<&Price>,
        tracker: &mut Tracker,
    ) -> Result<(), Refusal> {
        let refusal = short::unpriced(budget, call, price);
        self.refuse(budget, refusal, tracker)
    }

    fn done(self, tracker: &mut Tracker) {
        tracker.charged(self.charge);
    }
}
