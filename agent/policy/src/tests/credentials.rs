use super::*;
use crate::CredentialForm;

/// A policy with one credential, `CREDENTIAL` being its members.
fn policy(credential: &str) -> String {
    format!(
        r#"version: 1
workloads: {{ w: {{ match: {{ unit: w.service }} }} }}
apis: {{ s3: {{ hosts: [s3.eu-west-1.amazonaws.com] }} }}
credentials:
  c: {{ to: [s3], {credential} }}
roles: {{ r: [{{ api: s3, credential: c, allow: [{{ route: "GET /**" }}] }}] }}
grants: [{{ role: r, to: {{ workload: w }} }}]
"#
    )
}

fn faults(credential: &str) -> Vec<String> {
    let Err(faults) = compile(&[source("p.yaml", &policy(credential))]) else {
        return Vec::new();
    };
    faults
        .iter()
        .map(|fault| format!("{}:{}: {}", fault.at.line, fault.at.column, fault.message))
        .collect()
}

const KEYS: &str = "access_key: \"vault:aws/reader#id\", secret_key: \"vault:aws/reader#key\"";

#[test]
fn keys_are_signed_with() {
    let all = format!(
        "aws-sigv4: {{ {KEYS}, session_token: \"file:session\", region: eu-west-1, service: s3 }}"
    );
    let compiled = compile(&[source("p.yaml", &policy(&all))]).unwrap();
    let credential = &compiled.policy.credentials()[0];
    let CredentialForm::AwsSigV4(keys) = &credential.form else {
        panic!("{credential:?}");
    };
    assert_eq!(keys.access_key.to_string(), "vault:aws/reader#id");
    assert_eq!(keys.region.as_deref(), Some("eu-west-1"));
    assert_eq!(keys.service.as_deref(), Some("s3"));
    assert_eq!(
        credential.form.header_names(),
        [
            "authorization",
            "x-amz-content-sha256",
            "x-amz-date",
            "x-amz-security-token"
        ]
    );
    assert_eq!(credential.form.secrets().len(), 3);

    let few = policy(&format!("aws-sigv4: {{ {KEYS} }}"));
    let compiled = compile(&[source("p.yaml", &few)]).unwrap();
    let form = &compiled.policy.credentials()[0].form;
    assert_eq!((form.header_names().len(), form.secrets().len()), (3, 2));
}

#[test]
fn what_is_wrong_with_keys_is_told() {
    let cases = [
        (
            "aws-sigv4: {}",
            vec![
                "5:29: `aws-sigv4` needs `access_key`",
                "5:29: `aws-sigv4` needs `secret_key`",
            ],
        ),
        (
            "aws-sigv4: { access_key: AKIA, secret_key: \"file:k\" }",
            vec!["5:43: expected `file:NAME` or `vault:PATH#FIELD`, found `AKIA`"],
        ),
        (
            "aws-sigv4: { KEYS, region: \"EU West\" }",
            vec!["5:110: `EU West` is not a region of AWS"],
        ),
        (
            "aws-sigv4: { KEYS, service: \"\" }",
            vec!["5:111: `` is not a service of AWS"],
        ),
        (
            "aws-sigv4: { KEYS, sevice: s3 }",
            vec!["5:102: unknown key `sevice` in `aws-sigv4`"],
        ),
        (
            "aws-sigv4: { KEYS }, secret: \"file:s\"",
            vec!["5:104: `secret` stands beside `aws-sigv4`"],
        ),
        (
            "secret: \"file:s\"",
            vec!["5:6: the credential needs `header`"],
        ),
        (
            "secret: \"vault:aws\", header: { x: \"{secret}\" }",
            vec!["5:26: `aws` is not the place of a secret in Vault"],
        ),
    ];
    for (credential, expected) in cases {
        assert_eq!(
            faults(&credential.replace("KEYS", KEYS)),
            expected,
            "{credential}"
        );
    }
    for place in [
        "#f", "a#", "/a#f", "a/#f", "a//b#f", "a/../b#f", ".a#f", "a#f#g", "a%2f#f", "a b#f",
        "a#f/g",
    ] {
        let credential = format!("secret: \"vault:{place}\", header: {{ x: \"{{secret}}\" }}");
        assert_eq!(faults(&credential).len(), 1, "{place}");
    }
    let long = format!(
        "secret: \"vault:{}#f\", header: {{ x: \"{{secret}}\" }}",
        "a".repeat(129)
    );
    assert_eq!(faults(&long).len(), 1);
}

#[test]
fn a_rule_cannot_ask_for_what_a_signature_sets() {
    let text = policy(&format!("aws-sigv4: {{ {KEYS} }}")).replace(
        "route: \"GET /**\"",
        "route: \"GET /**\", headers: { require: { x-amz-date: string } }",
    );
    let faults = compile(&[source("p.yaml", &text)]).unwrap_err();
    let first = &faults.0[0].message;
    assert!(first.contains("x-amz-date"), "{first}");
}

#[test]
fn a_presigned_query_is_taken_out() {
    let compiled = compile(&[source(
        "p.yaml",
        &policy(&format!("aws-sigv4: {{ {KEYS} }}")),
    )]);
    let policy = compiled.unwrap().policy;
    let url = "https://s3.eu-west-1.amazonaws.com/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F20260101%2Feu-west-1%2Fs3%2Faws4_request\
               &X-Amz-Date=20260101T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=00&versionId=3";
    let plan = call("w", "GET", url).decide(&policy).plan;
    assert_eq!(plan.query, Some(Some("versionId=3".to_owned())));
    assert_eq!(plan.stripped_query.len(), 6);
}
