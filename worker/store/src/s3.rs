//! Object storage: where a bucket is, and requests to it signed as S3 wants them (AWS Signature Version 4, in the URL).
//!
//! The signature covers method, path, query and host, not what is sent: lengths are checked after a file was put, digests when it is read.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusty_s3::actions::{CompleteMultipartUpload, CompleteMultipartUploadResponse, CreateMultipartUpload};
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use serde::{Deserialize, Serialize};

use crate::request::Action;

/// How long a server takes a signed request for, whose clock may differ as much from ours.
const VALID: Duration = Duration::from_secs(900);
/// Bytes of a part. A file of more goes in parts, of which there may be [`PARTS_MAX`]: 5 TiB. One request may have 5 GiB.
const PART_BYTES: u64 = 512 << 20;
/// S3's limit.
const PARTS_MAX: u64 = 10_000;
/// Longest part of a refusal that is passed on.
const MESSAGE_MAX: usize = 300;

/// A place in a bucket, and what requests to it are signed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct S3Location {
    /// `http://` or `https://`, without the bucket; AWS's for the region when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// As signatures name it.
    #[serde(default = "region")]
    pub region: String,
    /// Name of the bucket.
    pub bucket: String,
    /// The object, or what the names of all objects begin with, without the `/` that follows.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// Whether the bucket is in the path or in the name of the host. When absent: in the path if there is an endpoint, or if its name has a
    /// dot, which certificates of AWS do not cover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// A folder with the files `accessKeyId`, `secretAccessKey` and, if there is one, `sessionToken`. They are read for each request, so
    /// that they can change. Without it they come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<PathBuf>,
}

fn region() -> String {
    "us-east-1".to_owned()
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl S3Location {
    /// From `bucket/prefix`, at AWS.
    pub(crate) fn parse(place: &str) -> Self {
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let (bucket, prefix) = (bucket.to_owned(), prefix.trim_end_matches('/').to_owned());
        Self { endpoint: None, region: region(), bucket, prefix, path_style: None, credentials: None }
    }

    /// What is wrong with it, in the words after the name of its field, if something is.
    ///
    /// # Errors
    /// That.
    pub fn check(&self) -> Result<(), String> {
        self.address().map(drop)
    }

    fn endpoint(&self) -> String {
        self.endpoint.clone().unwrap_or_else(|| format!("https://s3.{}.amazonaws.com", self.region))
    }

    /// Checks all that can be wrong before a server is asked.
    fn address(&self) -> Result<Bucket, String> {
        if self.bucket.is_empty() || self.region.is_empty() {
            return Err("has no s3.bucket, or an empty s3.region".to_owned());
        }
        let part_of_a_name = |part: &str| !matches!(part, "" | "." | "..");
        if !self.prefix.is_empty() && !self.prefix.split('/').all(part_of_a_name) {
            return Err(format!("has s3.prefix `{}`; use one like `runs/bible`", self.prefix));
        }
        let endpoint = self.endpoint();
        let in_path = self.path_style.unwrap_or(self.endpoint.is_some() || self.bucket.contains('.'));
        let style = if in_path { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let no_url = || format!("has s3.endpoint `{endpoint}`; use one like `https://storage.example`");
        Bucket::new(endpoint.parse().ok().ok_or_else(no_url)?, style, self.bucket.clone(), self.region.clone())
            .map_err(|e| {
                let named = format!("{endpoint}, bucket `{}`", self.bucket);
                format!("names no bucket that can be asked for ({named}): {e}; set s3.pathStyle, or another s3.endpoint")
            })
    }
}

/// Makes signed URLs.
#[derive(Clone)]
pub(crate) struct Signer {
    place: S3Location,
    bucket: Bucket,
    /// What says where it is, for messages.
    field: String,
    /// Bytes of a part.
    pub(crate) part_bytes: u64,
}

impl Signer {
    /// What is wrong with `place`, in the words after `field`, if something is.
    pub(crate) fn new(place: &S3Location, field: &str) -> Result<Self, String> {
        let bucket = place.address()?;
        Ok(Self { place: place.clone(), bucket, field: field.to_owned(), part_bytes: PART_BYTES })
    }

    /// The URL for `action` on the object `name`.
    pub(crate) fn url(&self, action: &Action<'_>, name: &str) -> io::Result<String> {
        Ok(self.signed(action, name, &self.credentials()?, VALID, &Timestamp::now()))
    }

    fn signed(
        &self,
        action: &Action<'_>,
        name: &str,
        credentials: &Credentials,
        valid: Duration,
        now: &Timestamp,
    ) -> String {
        let prefix = &self.place.prefix;
        let between = if prefix.is_empty() || name.is_empty() { "" } else { "/" };
        let key = format!("{prefix}{between}{name}");
        let (bucket, who, key) = (&self.bucket, Some(credentials), key.as_str());
        let url = match *action {
            Action::Get => bucket.get_object(who, key).sign_with_time(valid, now),
            Action::Head => bucket.head_object(who, key).sign_with_time(valid, now),
            Action::Put => bucket.put_object(who, key).sign_with_time(valid, now),
            Action::Delete => bucket.delete_object(who, key).sign_with_time(valid, now),
            Action::Begin => bucket.create_multipart_upload(who, key).sign_with_time(valid, now),
            Action::Part { upload, number } => {
                bucket.upload_part(who, key, number, upload).sign_with_time(valid, now)
            }
            Action::Complete { upload } => {
                let parts = std::iter::empty();
                bucket.complete_multipart_upload(who, key, upload, parts).sign_with_time(valid, now)
            }
            Action::Abort { upload } => {
                bucket.abort_multipart_upload(who, key, upload).sign_with_time(valid, now)
            }
        };
        url.into()
    }

    fn credentials(&self) -> io::Result<Credentials> {
        let Some(folder) = &self.place.credentials else {
            let unset = || io::Error::other(format!("{} are not set", self.keys()));
            return Credentials::from_env().ok_or_else(unset);
        };
        let read = |name: &str| {
            let missing = |e| io::Error::other(format!("{e}; it needs {}", self.keys()));
            read_trimmed(&folder.join(name)).map_err(missing)
        };
        let (id, secret) = (read("accessKeyId")?, read("secretAccessKey")?);
        Ok(match folder.join("sessionToken") {
            token if token.exists() => Credentials::new_with_token(id, secret, read_trimmed(&token)?),
            _ => Credentials::new(id, secret),
        })
    }

    /// Where credentials come from, in words.
    fn keys(&self) -> String {
        match &self.place.credentials {
            Some(folder) => format!(
                "`accessKeyId` and `secretAccessKey` in {} (the Secret of {}.s3.credentialsSecret)",
                folder.display(),
                self.field
            ),
            None => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".to_owned(),
        }
    }

    /// Numbers and ranges of the parts of a file.
    pub(crate) fn parts(&self, bytes: u64) -> io::Result<Vec<(u16, Range<u64>)>> {
        let count = bytes.div_ceil(self.part_bytes);
        if count > PARTS_MAX {
            let most = (PARTS_MAX * self.part_bytes) >> 30;
            let problem =
                format!("it has {} GiB, and an object at most {most}: use more stages", bytes >> 30);
            return Err(io::Error::other(problem));
        }
        let range = |i: u64| i * self.part_bytes..((i + 1) * self.part_bytes).min(bytes);
        Ok((1..).zip((0..count).map(range)).collect())
    }

    /// What an object is put together from: what the server said of each part, in their order.
    pub(crate) fn complete_body(&self, etags: &[String]) -> String {
        let etags = etags.iter().map(String::as_str);
        CompleteMultipartUpload::new(&self.bucket, None, "", "", etags).body()
    }

    /// What a refusal means, and what to do.
    pub(crate) fn refusal(&self, status: u16, body: &str) -> String {
        let (code, message) = (element(body, "Code"), element(body, "Message"));
        let S3Location { region, bucket, .. } = &self.place;
        let endpoint = self.place.endpoint();
        let advice = match (status, code) {
            (_, "NoSuchBucket") => {
                format!("make the bucket `{bucket}`, or correct {}.s3", self.field)
            }
            (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch") => {
                format!("{} are no pair that it knows", self.keys())
            }
            (_, "ExpiredToken" | "InvalidToken") => {
                format!("beside {}, `sessionToken` must be one that is still valid", self.keys())
            }
            (_, "RequestTimeTooSkewed") => "set the clock of this machine".to_owned(),
            (301 | 307, _) | (_, "AuthorizationHeaderMalformed" | "AuthorizationQueryParametersError") => {
                format!("is the bucket `{bucket}` in region {region}?")
            }
            (403, _) => format!(
                "{} must be allowed to get, put and delete objects of the bucket `{bucket}`, and to list it",
                self.keys()
            ),
            _ => String::new(),
        };
        let said = [code, message].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(": ");
        let said = if said.is_empty() { said } else { format!(" ({said})") };
        let advice = if advice.is_empty() { advice } else { format!("; {advice}") };
        format!("{endpoint} answers HTTP {status}{said}{advice}")
    }
}

/// Whether there is no such bucket, which is something else than no such object.
pub(crate) fn lacks_bucket(body: &str) -> bool {
    element(body, "Code") == "NoSuchBucket"
}

/// The name of an upload in parts, out of the answer to [`Action::Begin`].
pub(crate) fn upload_id(body: &str) -> io::Result<String> {
    let answer = CreateMultipartUpload::parse_response(body).map_err(io::Error::other)?;
    Ok(answer.upload_id().to_owned())
}

/// Whether an upload in parts is complete: the answer to [`Action::Complete`] says so, not its status.
pub(crate) fn is_complete(body: &str) -> bool {
    CompleteMultipartUploadResponse::parse(body).is_ok()
}

fn read_trimmed(path: &Path) -> io::Result<String> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| io::Error::other(format!("cannot read {}: {e}", path.display())))?;
    Ok(text.trim().to_owned())
}

/// The text of the first element `name`, as people read it.
fn element<'a>(xml: &'a str, name: &str) -> &'a str {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let inner =
        xml.split_once(&open).and_then(|(_, rest)| rest.split_once(&close)).map_or("", |(text, _)| text);
    inner.char_indices().nth(MESSAGE_MAX).map_or(inner, |(end, _)| &inner[..end])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn signer(s3: Value) -> Result<Signer, String> {
        Signer::new(&serde_json::from_value(s3).unwrap(), "checkpoint.destination")
    }

    /// The keys of AWS's documentation.
    fn example(token: Option<&str>) -> Credentials {
        let (id, secret) = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        match token {
            Some(token) => Credentials::new_with_token(id, secret, token),
            None => Credentials::new(id, secret),
        }
    }

    /// 2013-05-24T00:00:00Z, as in AWS's documentation.
    fn example_time() -> Timestamp {
        Timestamp::from_second(1_369_353_600).unwrap()
    }

    /// "Authenticating Requests: Using Query Parameters", Amazon S3 API Reference.
    #[test]
    fn the_example_that_aws_gives_is_signed_as_there() {
        let s3 =
            json!({"endpoint": "https://s3.amazonaws.com", "bucket": "examplebucket", "pathStyle": false});
        let day = Duration::from_secs(86_400);
        let url = signer(s3).unwrap().signed(&Action::Get, "test.txt", &example(None), day, &example_time());
        let expected = "https://examplebucket.s3.amazonaws.com/test.txt\
            ?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
            &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
            &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
        assert_eq!(url, expected);
    }

    #[test]
    fn the_bucket_is_where_its_server_expects_it() {
        for (s3, expected) in [
            (json!({"bucket": "b"}), "https://b.s3.us-east-1.amazonaws.com/f"),
            (json!({"bucket": "b.c", "region": "eu-west-1"}), "https://s3.eu-west-1.amazonaws.com/b.c/f"),
            (json!({"bucket": "b", "prefix": "runs/a"}), "https://b.s3.us-east-1.amazonaws.com/runs/a/f"),
            (json!({"bucket": "b", "endpoint": "http://minio:9000/"}), "http://minio:9000/b/f"),
            (
                json!({"bucket": "b", "endpoint": "https://store.example/s3", "pathStyle": false}),
                "https://b.store.example/s3/f",
            ),
        ] {
            let url = signer(s3).unwrap().signed(&Action::Put, "f", &example(None), VALID, &example_time());
            assert_eq!(url.split('?').next(), Some(expected));
        }
        let with_token = signer(json!({"bucket": "b"})).unwrap().signed(
            &Action::Part { upload: "u", number: 2 },
            "f",
            &example(Some("to/ken")),
            VALID,
            &example_time(),
        );
        for part in ["X-Amz-Security-Token=to%2Fken", "partNumber=2", "uploadId=u"] {
            assert!(with_token.contains(part), "{with_token}");
        }
    }

    #[test]
    fn a_place_that_cannot_be_is_refused_before_anything_is_asked() {
        for (s3, message) in [
            (json!({"bucket": ""}), "has no s3.bucket"),
            (json!({"bucket": "b", "prefix": "/runs"}), "has s3.prefix `/runs`"),
            (json!({"bucket": "b", "prefix": "runs/../x"}), "has s3.prefix `runs/../x`"),
            (json!({"bucket": "b", "endpoint": "minio"}), "has s3.endpoint `minio`"),
            (json!({"bucket": "b", "endpoint": "ftp://minio"}), "names no bucket"),
            (
                json!({"bucket": "b_c", "endpoint": "http://127.0.0.1:9", "pathStyle": false}),
                "set s3.pathStyle",
            ),
        ] {
            let error = signer(s3).err().unwrap();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn credentials_are_those_of_now() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        let signer = signer(json!({"bucket": "b", "credentials": folder.path()})).unwrap();
        let error = signer.url(&Action::Get, "f").unwrap_err().to_string();
        assert!(error.contains("accessKeyId") && error.contains("credentialsSecret"), "{error}");
        file("accessKeyId", b"one\n");
        file("secretAccessKey", b"secret\n");
        let url = || signer.url(&Action::Get, "f").unwrap();
        assert!(url().contains("Credential=one%2F") && !url().contains("Token"), "{}", url());
        file("accessKeyId", b"two");
        file("sessionToken", b"token\n");
        assert!(url().contains("Credential=two%2F") && url().contains("Security-Token=token&"), "{}", url());
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let signer = signer(json!({"bucket": "b", "endpoint": "http://minio"})).unwrap();
        let body =
            |code: &str| format!("<?xml?><Error><Code>{code}</Code><Message>It is so.</Message></Error>");
        for (status, code, said) in [
            (
                403,
                "SignatureDoesNotMatch",
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are no pair that it knows",
            ),
            (
                403,
                "AccessDenied",
                "must be allowed to get, put and delete objects of the bucket `b`, and to list it",
            ),
            (404, "NoSuchBucket", "make the bucket `b`"),
            (400, "ExpiredToken", "`sessionToken` must be one that is still valid"),
            (301, "PermanentRedirect", "is the bucket `b` in region us-east-1?"),
        ] {
            let text = signer.refusal(status, &body(code));
            let expected = format!("http://minio answers HTTP {status} ({code}: It is so.); ");
            assert!(text.starts_with(&expected) && text.contains(said), "{text}");
        }
        assert_eq!(signer.refusal(500, ""), "http://minio answers HTTP 500");
        let long = signer.refusal(400, &format!("<Message>{}</Message>", "ü".repeat(1000)));
        assert_eq!(long.chars().filter(|c| *c == 'ü').count(), MESSAGE_MAX);
    }

    #[test]
    fn a_file_goes_in_equal_parts_and_a_rest_up_to_the_limits_of_s3() {
        let signer = signer(json!({"bucket": "b"})).unwrap();
        let parts = signer.parts(2 * PART_BYTES + 1).unwrap();
        let expected =
            [(1, 0..PART_BYTES), (2, PART_BYTES..2 * PART_BYTES), (3, 2 * PART_BYTES..2 * PART_BYTES + 1)];
        assert_eq!(parts, expected);
        assert_eq!(signer.parts(PARTS_MAX * PART_BYTES).unwrap().len(), 10_000);
        let error = signer.parts(PARTS_MAX * PART_BYTES + 1).unwrap_err().to_string();
        assert!(error.contains("an object at most 5000: use more stages"), "{error}");
    }
}
