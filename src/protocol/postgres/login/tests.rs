use super::*;

fn params(password: Option<&str>) -> LoginParams {
    LoginParams {
        user: b"md5_user".to_vec(),
        database: b"shop".to_vec(),
        password: password.map(Secret::new),
        extra: vec![(b"options".to_vec(), b"-c a=b".to_vec())],
    }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
    out
}

fn accepted() -> Vec<u8> {
    [
        message(b'R', &[0; 4]),
        message(b'S', b"TimeZone\0UTC\0"),
        message(b'K', &[0, 0, 0, 9, 1, 2, 3, 4]),
        message(b'Z', b"I"),
    ]
    .concat()
}

#[test]
fn a_trusting_server_lets_us_in_however_its_bytes_are_cut() {
    let bytes = accepted();
    for size in 1..=bytes.len() {
        let mut login = Login::new(params(None));
        let mut out = Vec::new();
        let mut session = None;
        for piece in bytes.chunks(size) {
            if let LoginProgress::Done { session: done, .. } =
                login.receive(piece, &mut out).unwrap()
            {
                session = Some(done);
            }
        }
        let session = session.unwrap();
        assert_eq!(session.settings, [(b"TimeZone".to_vec(), b"UTC".to_vec())]);
        assert_eq!(session.backend_key.unwrap().pid, 9);
        assert!(out.is_empty());
    }
}

#[test]
fn clear_text_and_md5_passwords_are_answered() {
    let mut out = Vec::new();
    let mut login = Login::new(params(Some("password")));
    login
        .receive(&message(b'R', &[0, 0, 0, 3]), &mut out)
        .unwrap();
    assert_eq!(out, message(b'p', b"password\0"));
    out.clear();
    let mut login = Login::new(params(Some("password")));
    let ask = message(b'R', &[0, 0, 0, 5, 0x2a, 0x3d, 0x8f, 0xe0]);
    login.receive(&ask, &mut out).unwrap();
    assert_eq!(out, message(b'p', b"md562af4dd09bbb41884907a838a3233294\0"));
}

#[test]
fn a_missing_password_and_foreign_methods_have_their_own_errors() {
    let ask = |login: &mut Login, body: &[u8]| {
        login
            .receive(&message(b'R', body), &mut Vec::new())
            .unwrap_err()
    };
    let mut login = Login::new(params(None));
    assert_eq!(ask(&mut login, &[0, 0, 0, 3]), LoginError::PasswordRequired);
    let mut login = Login::new(params(Some("x")));
    assert_eq!(
        ask(&mut login, &[0, 0, 0, 7]),
        LoginError::UnsupportedAuth("GSSAPI")
    );
    let mut login = Login::new(params(Some("x")));
    assert!(matches!(
        ask(&mut login, b"\0\0\0\nOAUTHBEARER\0\0"),
        LoginError::UnsupportedAuth(_)
    ));
}

#[test]
fn a_wrong_password_is_told_with_the_servers_sqlstate() {
    let error = message(b'E', b"SFATAL\0C28P01\0Mpassword authentication failed\0\0");
    let got = Login::new(params(Some("x")))
        .receive(&error, &mut Vec::new())
        .unwrap_err();
    assert_eq!(
        got,
        LoginError::Server {
            body: error[5..].into(),
            sqlstate: Sqlstate::new(b"28P01"),
            message: "password authentication failed".into()
        }
    );
}

#[test]
fn a_server_that_skips_its_own_scram_proof_is_not_believed() {
    let mut login = Login::new(params(Some("x")));
    let mut out = Vec::new();
    login
        .receive(&message(b'R', b"\0\0\0\nSCRAM-SHA-256\0\0"), &mut out)
        .unwrap();
    assert!(out.starts_with(b"p"));
    let error = login
        .receive(&message(b'R', &[0; 4]), &mut out)
        .unwrap_err();
    assert!(matches!(error, LoginError::Scram(_)));
}

#[test]
fn messages_out_of_place_and_huge_ones_end_the_login() {
    for bytes in [
        message(b'Z', b"I"),
        message(b'C', b"SELECT 1\0"),
        message(b'S', b"a\0b\0"),
    ] {
        let mut login = Login::new(params(None));
        assert!(matches!(
            login.receive(&bytes, &mut Vec::new()),
            Err(LoginError::Protocol(_))
        ));
    }
    let huge = [&b"N"[..], &0x3000_0000u32.to_be_bytes()].concat();
    assert!(
        Login::new(params(None))
            .receive(&huge, &mut Vec::new())
            .is_err()
    );
}

#[test]
fn the_password_is_in_no_debug_output() {
    let login = Login::new(params(Some("canary-5512")));
    assert!(!format!("{login:?} {:?}", login.params).contains("canary"));
}
