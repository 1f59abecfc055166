//! Owns: faults that can be injected into the store to prove the tests: each must be noticed, by a campaign (`faults sabotage`
//! in `bench`) or by a simulation of `tapestore-engine` (`tests::whole`, `consensus::tests`).
//!
//! What must hold: without debug assertions [`is`] is the constant `false` and costs nothing. With them a thread breaks a
//! rule by [`break_rule`]; a whole process does so by [`VARIABLE`], and only under the feature `sabotage`.

#[cfg(all(feature = "sabotage", not(debug_assertions)))]
compile_error!("the feature `sabotage` makes the store lose data on request: it is for debug builds only");

/// The environment variable that names a process's fault.
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

            /// Its name, as in [`VARIABLE`].
            pub const fn name(self) -> &'static str {
                match self { $(Sabotage::$variant => $name,)* }
            }

            /// The effect of the fault.
            pub const fn what(self) -> &'static str {
                match self { $(Sabotage::$variant => $what,)* }
            }
        }
    };
}

sabotages! {
    SkipLogSync "skip-log-sync" "the log is reported durable without a sync",
    SkipFileSync "skip-file-sync" "an SSTable gets its name without a sync",
    SkipDirSync "skip-dir-sync" "directories are not synced",
    SkipEditSync "skip-edit-sync" "an edit of the manifest is not synced",
    AckEarly "ack-early" "records are acknowledged as durable when they are appended",
    SkipFrameCrc "skip-frame-crc" "the payload of a frame of the log is not compared with its CRC",
    SkipBlockCrc "skip-block-crc" "a block of an SSTable is not compared with its CRC",
    SkipEditCrc "skip-edit-crc" "the payload of an edit of the manifest is not compared with its CRC",
    ForgetPublishers "forget-publishers" "the publishers' last sequence numbers are lost at a restart",
    AcceptTwice "accept-twice" "a record that was accepted before is accepted again",
    ServeTornTail "serve-torn-tail" "frames after a torn frame are served as the log",
    IgnoreDurableMark "ignore-durable-mark" "damage below the durable mark is truncated like a torn tail",
    RecycleEarly "recycle-early" "a segment of the log is recycled before the checkpoint has passed it",
    UnlinkEarly "unlink-early" "the inputs of a compaction are removed before the edit that replaces them",
    OverwriteLive "overwrite-live" "a compaction overwrites a file that is in use",
    LoseRow "lose-row" "a compaction drops a record",
    RetrySync "retry-sync" "a failed sync is retried and the retry trusted",
    AnswerByIndex "answer-by-index" "a forwarded request is answered when any frame of its index commits",
    ServeTheDead "serve-the-dead" "a publisher that ended while its request waited is still attached",
    KeepSlot "keep-slot" "the slot of a detached publisher is not reused",
    KeepUncommitted "keep-uncommitted" "a session's records are queued for a commit that never drains the queue",
    CheckpointEarly "checkpoint-early" "a checkpoint waits for the committed frames, not for the applied ones",
    TickLate "tick-late" "consensus gets no ticks while a request is carried out",
    HoldRequests "hold-requests" "requests queued for forwarding stay queued when the host becomes the leader",
    AskOnce "ask-once" "a lost forwarded request is not sent again",
    AnswerEarly "answer-early" "a request is answered before its frame is committed",
    AcceptUnchained "accept-unchained" "a frame is accepted though it does not follow the last one",
    IgnoreFull "ignore-full" "a write that finds no room is reported as successful",
}

#[cfg(debug_assertions)]
std::thread_local! {
    static BROKEN: std::cell::Cell<Option<Sabotage>> = const { std::cell::Cell::new(None) };
}

/// Makes this thread break the rule `which`, or none: for simulations, in builds with debug assertions.
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

/// Whether this process has the fault `which`: never.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn is(_which: Sabotage) -> bool {
    false
}
