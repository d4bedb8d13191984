//! The word that somebody meant who wrote another one.

/// The word that a typing error most likely meant: at most a third of its letters differ.
pub(in crate::config) fn nearest<'w>(word: &str, words: &[&'w str]) -> Option<&'w str> {
    // A key may be as long as the file; no typing error is.
    if word.len() > 64 {
        return None;
    }
    words
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(distance, candidate)| distance * 3 <= candidate.len().max(word.len()))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance in bytes, row by row.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_finds_its_key_and_nonsense_finds_none() {
        let keys = ["mirror_queue", "mirror_exposure", "pace"];
        assert_eq!(nearest("miror_exposure", &keys), Some("mirror_exposure"));
        assert_eq!(nearest("pase", &keys), Some("pace"));
        assert_eq!(nearest("colour", &keys), None);
        assert_eq!(nearest(&"x".repeat(100_000), &keys), None);
    }
}
