//! Owns: the faults that the store can be told to have, so that the fault campaigns are proved: each must be
//! caught by one of them (`faults sabotage` in `bench`).
//!
//! What must hold: without debug assertions [`is`] is the constant `false` and costs nothing. With them a thread breaks a
//! rule by [`break_rule`]; a whole process only under the feature `sabotage`, by [`VARIABLE`].

#[cfg(all(feature = "sabotage", not(debug_assertions)))]
compile_error!("the feature `sabotage` makes the store lose data on request: it exists in debug builds alone");

/// The environment variable that names the fault of a process.
pub const VARIABLE: &str = "TAPE_SABOTAGE";

macro_rules! sabotages {
    ($($variant:ident $name:literal $what:literal,)*) => {
        /// A rule that is broken on purpose.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Sabotage {
            $(#[doc = $what] $variant,)*
        }

        impl Sabotage {
            /// All of them.
            pub const ALL: &[Sabotage] = &[$(Sabotage::$variant,)*];

            /// Its name, as [`VARIABLE`] has it.
            pub const fn name(self) -> &'static str {
                match self { $(Sabotage::$variant => $name,)* }
            }

            /// What it breaks.
            pub const fn what(self) -> &'static str {
                match self { $(Sabotage::$variant => $what,)* }
            }
        }
    };
}

sabotages! {
    SkipLogSync "skip-log-sync" "the log is said to be durable and is not synced",
    SkipFileSync "skip-file-sync" "a file of history gets its name without being synced",
    SkipDirSync "skip-dir-sync" "directories are not synced",
    SkipEditSync "skip-edit-sync" "an edit of the manifest is not synced",
    AckEarly "ack-early" "records are acknowledged as durable when they are appended",
    SkipFrameCrc "skip-frame-crc" "the payload of a frame of the log is not compared with its CRC",
    SkipBlockCrc "skip-block-crc" "a block of a file is not compared with its CRC",
    SkipEditCrc "skip-edit-crc" "the payload of an edit of the manifest is not compared with its CRC",
    ForgetPublishers "forget-publishers" "what publishers have sent is not known after a restart",
    AcceptTwice "accept-twice" "a record that was accepted before is accepted again",
    ServeTornTail "serve-torn-tail" "what lies behind a torn frame is taken as the log",
    IgnoreEvidence "ignore-evidence" "damage below what is known to be durable is cut like a torn tail",
    RecycleEarly "recycle-early" "a segment of the log is given up before the checkpoint has passed it",
    UnlinkEarly "unlink-early" "what a compaction replaces is removed before the edit that replaces it",
    OverwriteLive "overwrite-live" "a compaction writes over a file that is in use",
    LoseRow "lose-row" "a compaction leaves a record out",
    RetrySync "retry-sync" "a sync that has failed is tried again and then believed",
    AnswerByIndex "answer-by-index" "an answer to a forwarded request is given when any frame of its index commits",
    ServeTheDead "serve-the-dead" "a publisher that ended while its request waited is attached later",
    KeepSlot "keep-slot" "the slot of a publisher that has detached is not given again",
    KeepUncommitted "keep-uncommitted" "what a session has in the log is kept though nobody takes it out again",
    CheckpointEarly "checkpoint-early" "a checkpoint waits for what is committed, not for what is carried out",
    TickLate "tick-late" "no time passes for consensus while a request is carried out",
    StrandRequests "strand-requests" "what a host meant to forward stays where it is when the host leads itself",
    AskOnce "ask-once" "a forwarded request that was lost is not asked again",
    AnswerEarly "answer-early" "a request is answered before its frame is committed",
    AcceptUnchained "accept-unchained" "a frame is accepted though it does not follow the last one",
    IgnoreFull "ignore-full" "a write for which there is no room is said to have succeeded",
}

#[cfg(debug_assertions)]
std::thread_local! {
    static BROKEN: std::cell::Cell<Option<Sabotage>> = const { std::cell::Cell::new(None) };
}

/// Breaks the rule `which`, or none, on this thread from now on: for simulations, in builds with debug assertions.
#[cfg(debug_assertions)]
pub fn break_rule(which: Option<Sabotage>) {
    BROKEN.set(which);
}

/// Whether this thread, or this process, breaks the rule `which`.
#[cfg(debug_assertions)]
pub fn is(which: Sabotage) -> bool {
    BROKEN.get() == Some(which) || is_chosen(which)
}

/// Whether this process was started with the fault `which`.
#[cfg(feature = "sabotage")]
fn is_chosen(which: Sabotage) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var(VARIABLE).ok()).as_deref() == Some(which.name())
}

#[cfg(all(debug_assertions, not(feature = "sabotage")))]
const fn is_chosen(_which: Sabotage) -> bool {
    false
}

/// Whether this process has the fault `which`: no.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn is(_which: Sabotage) -> bool {
    false
}
