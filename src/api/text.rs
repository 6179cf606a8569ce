//! Texts of a status, within the bounds of the schema.

/// The beginning of a text, at most `max` bytes, with a mark where something was cut. The schema bounds characters; bytes are
/// what must fit etcd.
pub(super) fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.into();
    }
    let mark = '…';
    let end = text.floor_char_boundary(max - mark.len_utf8());
    format!("{}{mark}", &text[..end])
}
