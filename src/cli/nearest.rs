//! The known word that somebody who mistyped probably meant.

/// The nearest of `words` by edit distance, if it is near enough to be what was meant.
pub(super) fn nearest<'a>(given: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_ascii_lowercase().replace('_', "-");
    let measured = words.map(|word| (distance(&given, &word.replace('_', "-")), word));
    let (distance, word) = measured.min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + word.len() / 3).then_some(word)
}

/// Insertions, deletions and substitutions that turn `a` into `b` (Levenshtein), counted in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut left = i + 1;
        let mut next = vec![left];
        for (j, y) in b.bytes().enumerate() {
            let (diagonal, above) = (row.get(j).copied(), row.get(j + 1).copied());
            let (diagonal, above) = diagonal.zip(above).expect("a row has one cell more than b has bytes");
            left = (diagonal + usize::from(x != y)).min(above + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(a.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in [("", "abc", 3), ("kitten", "sitting", 3), ("same", "same", 0), ("ab", "ba", 2)]
        {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    #[test]
    fn a_word_is_suggested_only_if_it_is_near() {
        let words = ["endpoint", "region", "memory"];
        assert_eq!(nearest("endpiont", words.into_iter()), Some("endpoint"));
        assert_eq!(nearest("zzzzzzzz", words.into_iter()), None);
    }
}
