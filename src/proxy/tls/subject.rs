//! The common name in a certificate, for logs. Reads just enough DER (X.690) to find the subject (RFC 5280, 4.1); a
//! certificate that it cannot follow has no name.

/// Longest common name that is shown: `ub-common-name` of RFC 5280.
const NAME_LEN_MAX: usize = 64;

const INTEGER: u8 = 0x02;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const IA5: u8 = 0x16;

/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// The first common name of the subject, with control characters replaced.
pub fn common_name(certificate: &[u8]) -> Option<String> {
    let (whole, _) = value(certificate, SEQUENCE)?;
    let (mut rest, _) = value(whole, SEQUENCE)?;
    if let Some((_, behind)) = value(rest, VERSION) {
        rest = behind;
    }
    // Serial number, signature algorithm, issuer, validity.
    for tag in [INTEGER, SEQUENCE, SEQUENCE, SEQUENCE] {
        rest = value(rest, tag)?.1;
    }
    let (mut subject, _) = value(rest, SEQUENCE)?;
    while !subject.is_empty() {
        let (mut set, behind) = value(subject, SET)?;
        subject = behind;
        while !set.is_empty() {
            let (attribute, behind) = value(set, SEQUENCE)?;
            set = behind;
            let (kind, text) = value(attribute, OID)?;
            if kind == COMMON_NAME {
                let (text, _) = [UTF8, PRINTABLE, IA5]
                    .into_iter()
                    .find_map(|tag| value(text, tag))?;
                return Some(shown(text));
            }
        }
    }
    None
}

fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let clean = |c: char| if c.is_control() { '?' } else { c };
    text.chars().take(NAME_LEN_MAX).map(clean).collect()
}

/// The contents of the value at the front, which must have this tag, and what stands behind it.
fn value(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<2>()?;
    if head[0] != tag {
        return None;
    }
    let (len, rest) = match head[1] {
        short @ 0..=0x7f => (usize::from(short), rest),
        0x81 => {
            let (len, rest) = rest.split_first()?;
            (usize::from(*len), rest)
        }
        0x82 => {
            let (len, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*len)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str) -> Vec<u8> {
        let mut parameters = rcgen::CertificateParams::new(vec!["db.example".to_owned()]).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        let names = &mut parameters.distinguished_name;
        names.push(rcgen::DnType::OrganizationName, "Example");
        names.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        parameters.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_common_name_of_the_subject_is_found() {
        assert_eq!(common_name(&certificate("ann")).as_deref(), Some("ann"));
    }

    #[test]
    fn control_characters_do_not_reach_a_log() {
        assert_eq!(common_name(&certificate("a\nb")).as_deref(), Some("a?b"));
    }

    #[test]
    fn no_cut_or_changed_certificate_panics() {
        let whole = certificate("ann");
        for len in 0..whole.len() {
            let _ = common_name(&whole[..len]);
            let mut changed = whole.clone();
            changed[len] ^= 0xff;
            let _ = common_name(&changed);
        }
    }
}
