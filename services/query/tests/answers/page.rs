//! The statements of the page `sql` that stand beside those of QuestDB and kdb+ have answers, and are not longer.

use crate::world::ask;

const PAGE: &str = include_str!("../../../../src/docs/sql.md");

#[test]
fn ten_questions_of_other_systems_are_answered_in_no_more_words() {
    let blocks: Vec<&str> = PAGE.split("```sql\n-- ").skip(1).filter_map(|block| block.split("```").next()).collect();
    assert_eq!(blocks.len(), 10);
    for block in blocks {
        let (theirs, ours) = block.split_once("-- tapestore\n").unwrap();
        let theirs = theirs.split_once('\n').unwrap().1;
        let words = |sql: &str| sql.split_whitespace().count();
        assert!(words(ours) <= words(theirs), "{ours}");
        // The symbols of the test's store are other ones: an answer without rows is an answer.
        ask(ours.trim().trim_end_matches(';'));
    }
}
