use super::*;

const LONG: Duration = Duration::from_secs(60);

fn idle() -> Facts {
    let (down, up) = (Position::Message, Position::Message);
    Facts { quiet: LONG, down, up, pending: false, closing: false }
}

/// The step after so many milliseconds, and the time it names, in milliseconds.
fn after(millis: u64, facts: Facts) -> (Step, Option<u128>) {
    let since = Instant::now();
    let step = step(since, since + Duration::from_millis(millis), &facts);
    let wait = if let Step::Wait(until) = step { Some((until - since).as_millis()) } else { None };
    (step, wait)
}

#[test]
fn an_idle_connection_is_told_at_once() {
    assert_eq!(after(0, idle()).0, Step::Tell { message: true });
}

#[test]
fn a_connection_that_was_just_active_is_asked_again_when_it_could_be_quiet() {
    let facts = Facts { quiet: Duration::from_millis(50), ..idle() };
    assert_eq!(after(300, facts).1, Some(450));
}

#[test]
fn a_client_in_the_middle_of_a_message_is_waited_for_until_busy() {
    for up in [Position::Fragment, Position::Frame] {
        let facts = Facts { up, ..idle() };
        assert_eq!(after(0, facts).1, Some(1_000));
        assert_eq!(after(1_000, facts).0, Step::Tell { message: true });
    }
}

#[test]
fn a_connection_that_is_never_quiet_is_told_between_messages_once_it_counts_as_busy() {
    let facts = Facts { quiet: Duration::ZERO, ..idle() };
    assert!(matches!(after(999, facts).0, Step::Wait(_)));
    assert_eq!(after(1_000, facts).0, Step::Tell { message: true });
}

#[test]
fn between_fragments_only_close_may_go_and_only_at_the_last_call() {
    let facts = Facts { down: Position::Fragment, ..idle() };
    assert_eq!(after(1_499, facts).1, Some(1_500));
    assert_eq!(after(1_500, facts).0, Step::Tell { message: false });
}

#[test]
fn a_client_that_does_not_read_is_told_behind_what_is_pending_at_the_deadline() {
    let facts = Facts { pending: true, ..idle() };
    assert_eq!(after(1_999, facts).1, Some(2_000));
    assert_eq!(after(2_000, facts).0, Step::Tell { message: true });
}

#[test]
fn in_the_middle_of_a_frame_the_deadline_resets() {
    let facts = Facts { down: Position::Frame, ..idle() };
    assert_eq!(after(1_999, facts).1, Some(2_000));
    assert_eq!(after(2_000, facts).0, Step::Reset);
}

#[test]
fn malformed_frames_can_only_be_reset_and_only_when_quiet_or_late() {
    for facts in [Facts { down: Position::Malformed, ..idle() }, Facts { up: Position::Malformed, ..idle() }] {
        assert_eq!(after(0, facts).0, Step::Reset);
        let busy = Facts { quiet: Duration::ZERO, ..facts };
        assert!(matches!(after(1_900, busy).0, Step::Wait(_)));
        assert_eq!(after(2_000, busy).0, Step::Reset);
    }
}

#[test]
fn a_connection_that_is_closing_by_itself_has_five_seconds() {
    let facts = Facts { closing: true, down: Position::Frame, ..idle() };
    assert_eq!(after(0, facts).1, Some(5_000));
    assert_eq!(after(4_999, facts).1, Some(5_000));
    assert_eq!(after(5_000, facts).0, Step::Reset);
}

#[test]
fn the_app_is_cut_nowhere_then_between_messages_then_between_frames() {
    let since = Instant::now();
    let at = |millis| cut(since, since + Duration::from_millis(millis));
    assert_eq!([0, 999, 1_000, 1_499, 1_500, 2_000].map(at), {
        use Cut::{Frame, Message, Never};
        [Never, Never, Message, Message, Frame, Frame]
    });
}

fn parting(told: Instant) -> Parting {
    Parting { told, finished: None, client_gone: false, app_gone: false }
}

#[test]
fn a_parting_ends_when_both_sides_have() {
    let now = Instant::now();
    let gone = Parting { finished: Some(now), client_gone: true, app_gone: true, ..parting(now) };
    assert_eq!(gone.step(now), PartingStep::End);
    for open in [
        Parting { finished: None, ..gone },
        Parting { client_gone: false, ..gone },
        Parting { app_gone: false, ..gone },
    ] {
        assert!(matches!(open.step(now), PartingStep::Wait(_)), "{open:?}");
    }
}

#[test]
fn a_client_that_never_closes_is_left_two_seconds_after_our_fin() {
    let now = Instant::now();
    let finished = now + Duration::from_millis(100);
    let lingering = Parting { finished: Some(finished), app_gone: true, ..parting(now) };
    assert_eq!(lingering.step(finished), PartingStep::Wait(now + REPLY));
    assert_eq!(lingering.step(now + REPLY), PartingStep::Wait(finished + LINGER));
    assert_eq!(lingering.step(finished + LINGER), PartingStep::End);
}

#[test]
fn a_parting_is_cut_short_after_five_seconds() {
    let now = Instant::now();
    assert_eq!(parting(now).step(now), PartingStep::Wait(now + REPLY));
    assert_eq!(parting(now).step(now + REPLY), PartingStep::Wait(now + PART));
    assert_eq!(parting(now).step(now + PART), PartingStep::Reset);
}
