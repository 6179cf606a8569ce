//! What our own clients write on the requests that they create: a label for each float, so that the requests of a float are found
//! without reading all of them, and who asked.
//!
//! Both are advisory. Anybody may create a request without them, or with wrong ones: nothing that writes relies on either.

use sha2::{Digest as _, Sha256};

/// Precedes the hash in a label's key.
const FLOAT: &str = "float.ci.openshift.io/";
/// The annotation that says who asked, as whoever created the request claims.
pub const REQUESTED_BY: &str = "ci.openshift.io/requested-by";

/// The key of the label of a float: 16 hexadecimal digits of the SHA-256 of its name as the spec has it. Its value is empty.
#[must_use]
pub fn float_label(float: &str) -> String {
    let hash = Sha256::digest(float.as_bytes());
    let hex = hash.iter().take(8).map(|byte| format!("{byte:02x}"));
    format!("{FLOAT}{}", hex.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_of_a_float_is_what_sha256sum_says() {
        // printf %s quay.io/openshift/ci:ocp_4.21_cli | sha256sum | cut -c1-16
        assert_eq!(
            float_label("quay.io/openshift/ci:ocp_4.21_cli"),
            "float.ci.openshift.io/2f489bd242ec29cf"
        );
    }
}
