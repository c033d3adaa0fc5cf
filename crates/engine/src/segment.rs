//! Which tokens the branches of one request evaluate together. Branches that begin alike form a
//! tree: a segment of it is evaluated once, in the sequences of all branches that pass through it.
//! Pure. Used by `job.rs`.

use std::ops::Range;

/// A branch that has a sequence. Branches come in the order of their tokens, so that those that
/// begin alike are neighbours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Active {
    /// Its number in the request.
    pub(super) branch: usize,
    /// Tokens that it has in common with the active branch before it.
    pub(super) shared: usize,
    /// Tokens that are in its sequence already.
    pub(super) evaluated: usize,
    /// Tokens in all.
    pub(super) tokens: usize,
}

/// Tokens at the same positions of some branches.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Segment {
    pub(super) branches: Vec<usize>,
    pub(super) positions: Range<usize>,
    /// The segment that must be evaluated before this one.
    pub(super) parent: Option<usize>,
}

/// What is left to evaluate; a parent comes before its children.
pub(super) fn segments(active: &[Active]) -> Vec<Segment> {
    let mut found = Vec::new();
    split(active, None, &mut found);
    found
}

fn split(active: &[Active], parent: Option<usize>, found: &mut Vec<Segment>) {
    let mut rest = active;
    while let Some((first, others)) = rest.split_first() {
        let from = first.evaluated;
        let goes_along = |b: &&Active| b.evaluated == from && from < b.shared && from < b.tokens;
        let n = 1 + others.iter().take_while(goes_along).count();
        let (group, after) = rest.split_at(n);
        rest = after;
        let shared = group.iter().skip(1).map(|b| b.shared);
        let to = group.iter().map(|b| b.tokens).chain(shared).min().unwrap_or(from);
        if to <= from {
            continue;
        }
        let branches = group.iter().map(|b| b.branch).collect();
        found.push(Segment { branches, positions: from..to, parent });
        if 1 < n {
            let deeper: Vec<Active> =
                group.iter().map(|b| Active { evaluated: to, ..*b }).collect();
            split(&deeper, Some(found.len() - 1), found);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Token;
    use super::super::kv::common_prefix;
    use super::*;

    /// All branches of a request, nothing evaluated.
    fn all(texts: &[&str]) -> Vec<Active> {
        let tokens = |text: &str| -> Vec<Token> {
            text.bytes().map(|byte| Token(i32::from(byte))).collect()
        };
        let mut before = Vec::new();
        let active = texts.iter().enumerate().map(|(branch, text)| {
            let own = tokens(text);
            let shared = common_prefix(&before, &own);
            before.clone_from(&own);
            Active { branch, shared, evaluated: 0, tokens: own.len() }
        });
        active.collect()
    }

    fn shapes(found: &[Segment]) -> Vec<(Vec<usize>, Range<usize>, Option<usize>)> {
        found.iter().map(|s| (s.branches.clone(), s.positions.clone(), s.parent)).collect()
    }

    #[test]
    fn what_branches_share_is_evaluated_once() {
        let found = segments(&all(&["abcd", "abce", "abx", "y"]));
        let expected = [
            (vec![0, 1, 2], 0..2, None),
            (vec![0, 1], 2..3, Some(0)),
            (vec![0], 3..4, Some(1)),
            (vec![1], 3..4, Some(1)),
            (vec![2], 2..3, Some(0)),
            (vec![3], 0..1, None),
        ];
        assert_eq!(shapes(&found), expected);
    }

    #[test]
    fn equal_branches_share_their_last_token_too() {
        assert_eq!(shapes(&segments(&all(&["ab", "ab"]))), [(vec![0, 1], 0..2, None)]);
    }

    #[test]
    fn a_branch_that_is_behind_goes_alone() {
        let mut active = all(&["abcd", "abce"]);
        active[0].evaluated = 3;
        active[1].evaluated = 1;
        let expected = [(vec![0], 3..4, None), (vec![1], 1..4, None)];
        assert_eq!(shapes(&segments(&active)), expected);
    }

    proptest! {
        /// The segments are a partition of what is left, and never ask for a token that only some
        /// of their branches have.
        #[test]
        fn every_token_that_is_left_is_in_one_segment(
            mut texts in prop::collection::vec("[ab]{1,8}", 1..8),
            evaluated in prop::collection::vec(0_usize..9, 8),
        ) {
            texts.sort();
            let mut active = all(&texts.iter().map(String::as_str).collect::<Vec<_>>());
            for (b, evaluated) in active.iter_mut().zip(evaluated) {
                b.evaluated = evaluated.min(b.tokens);
            }
            let mut left: Vec<Vec<usize>> =
                active.iter().map(|b| (b.evaluated..b.tokens).collect()).collect();
            let found = segments(&active);
            for (index, segment) in found.iter().enumerate() {
                prop_assert!(!segment.positions.is_empty());
                prop_assert!(segment.parent.is_none_or(|parent| parent < index));
                let first = texts[segment.branches[0]].as_bytes();
                for &branch in &segment.branches {
                    let own = texts[branch].as_bytes();
                    prop_assert_eq!(&own[..segment.positions.end], &first[..segment.positions.end]);
                    for position in segment.positions.clone() {
                        prop_assert_eq!(left[branch].first(), Some(&position));
                        left[branch].remove(0);
                    }
                }
            }
            prop_assert!(left.iter().all(Vec::is_empty), "{:?}", left);
        }

        #[test]
        fn from_nothing_the_segments_are_the_smallest_tree(
            mut texts in prop::collection::vec("[ab]{1,8}", 1..8),
        ) {
            texts.sort();
            let found = segments(&all(&texts.iter().map(String::as_str).collect::<Vec<_>>()));
            let tokens: usize = found.iter().map(|segment| segment.positions.len()).sum();
            let prefixes: std::collections::BTreeSet<&str> =
                texts.iter().flat_map(|text| (1..=text.len()).filter_map(|n| text.get(..n))).collect();
            prop_assert_eq!(tokens, prefixes.len());
        }
    }
}
