//! A place on a server, with names below it: a URL that takes PUT, or a bucket of object storage. This is where they differ, in how they are
//! asked and in what a refusal means.

use std::fs::File;
use std::io;
use std::path::Path;

use ureq::Body;
use ureq::http::header::{CONTENT_LENGTH, ETAG, LOCATION, RANGE};
use ureq::http::request::Builder;
use ureq::http::{Request, Response, StatusCode};

use crate::error::StoreError;
use crate::http::{self, Client, Limits, Payload, may_pass, retry_after};
use crate::location::{HttpLocation, Location};
use crate::request::Action;
use crate::s3::{self, Signer};

/// How the server is asked.
#[derive(Clone)]
enum Way {
    Plain(HttpLocation),
    Signed(Box<Signer>),
}

/// A place on a server. A name below it is what follows the `/`; the empty one is the place itself.
#[derive(Clone)]
pub struct Server {
    client: Client,
    way: Way,
    /// What says where it is, for messages.
    field: String,
}

impl Server {
    /// The place at `location`, which is not a path. `field`: what says where it is, such as `checkpoint.destination`.
    ///
    /// # Errors
    /// When `location` cannot be, or is a path.
    pub fn new(location: &Location, field: &str) -> Result<Self, StoreError> {
        Self::with_limits(location, field, Limits::default())
    }

    /// The same, with limits of its own.
    ///
    /// # Errors
    /// As [`Server::new`].
    pub fn with_limits(location: &Location, field: &str, limits: Limits) -> Result<Self, StoreError> {
        let wrong = |problem: String| StoreError::Refused(format!("{field} {problem}"));
        let (private, way) = match location {
            Location::Path(path) => return Err(wrong(format!("is a path, {}", path.display()))),
            Location::Http(place) => (place.headers.is_some(), Way::Plain(place.clone())),
            // A signature is for one host.
            Location::S3(place) => (true, Way::Signed(Box::new(Signer::new(place, field).map_err(wrong)?))),
        };
        Ok(Self { client: Client::new(limits, private), way, field: field.to_owned() })
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.client.limits
    }

    /// What it means that a body broke off.
    pub(crate) fn broke(&self, error: io::Error) -> StoreError {
        self.client.failure(error.into())
    }

    /// Its length, where the server says it, if it is there.
    ///
    /// # Errors
    /// When the server does not say whether it is.
    pub fn length(&self, name: &str) -> Result<Option<Option<u64>>, StoreError> {
        let answer = self.if_there(Action::Head, name, None)?;
        Ok(answer.map(|a| a.headers().get(CONTENT_LENGTH).and_then(|l| l.to_str().ok()?.parse().ok())))
    }

    /// Deletes a file. It is no error when it is not there.
    ///
    /// # Errors
    /// When the server does not.
    pub fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.if_there(Action::Delete, name, None).map(drop)
    }

    /// Puts a file of these bytes.
    ///
    /// # Errors
    /// When the server does not take it.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.ask(Action::Put, name, Payload::Bytes(bytes)).map(drop)
    }

    /// Puts a file.
    ///
    /// # Errors
    /// When it cannot be read, or the server does not take it.
    pub fn put_file(&self, name: &str, file: &File) -> Result<(), StoreError> {
        let bytes = file.metadata()?.len();
        match &self.way {
            Way::Signed(signer) if bytes > signer.part_bytes => self.put_parts(signer, name, file, bytes),
            _ => self.ask(Action::Put, name, Payload::File { file, from: 0, bytes }).map(drop),
        }
    }

    fn put_parts(&self, signer: &Signer, name: &str, file: &File, bytes: u64) -> Result<(), StoreError> {
        let parts = signer.parts(bytes)?;
        let upload = s3::upload_id(&http::text(self.ask(Action::Begin, name, Payload::Bytes(&[]))?)?)?;
        let upload = upload.as_str();
        let send_all = || {
            let mut etags = Vec::with_capacity(parts.len());
            for (number, range) in parts {
                let part = Payload::File { file, from: range.start, bytes: range.end - range.start };
                let answer = self.ask(Action::Part { upload, number }, name, part)?;
                let etag = answer.headers().get(ETAG).and_then(|e| e.to_str().ok());
                let missing =
                    || StoreError::Unavailable("the server's answer to a part has no ETag".to_owned());
                etags.push(etag.ok_or_else(missing)?.to_owned());
            }
            let body = signer.complete_body(&etags);
            let answer = self.ask(Action::Complete { upload }, name, Payload::Bytes(body.as_bytes()))?;
            let (status, said) = (answer.status().as_u16(), http::text(answer)?);
            if s3::is_complete(&said) {
                return Ok(());
            }
            Err(StoreError::Unavailable(signer.refusal(status, &said)))
        };
        let sent = send_all();
        if sent.is_err() {
            // Parts that nobody completes are stored and paid for. What is told is the first error.
            let _ = self.send(Action::Abort { upload }, name, None, Payload::Nothing);
        }
        sent
    }

    /// The answer, which is a good one.
    fn ask(
        &self,
        action: Action<'_>,
        name: &str,
        payload: Payload<'_>,
    ) -> Result<Response<Body>, StoreError> {
        let answer = self.send(action, name, None, payload)?;
        if answer.status().is_success() { Ok(answer) } else { Err(self.refusal(action, answer)) }
    }

    /// The same, unless there is nothing called `name`. `range`: of bytes, as a header says it.
    pub(crate) fn if_there(
        &self,
        action: Action<'_>,
        name: &str,
        range: Option<&str>,
    ) -> Result<Option<Response<Body>>, StoreError> {
        let answer = self.send(action, name, range, Payload::Nothing)?;
        if answer.status().is_success() {
            return Ok(Some(answer));
        }
        match self.refusal(action, answer) {
            StoreError::Missing(_) => Ok(None),
            error => Err(error),
        }
    }

    /// What an answer means that is not a good one.
    fn refusal(&self, action: Action<'_>, answer: Response<Body>) -> StoreError {
        let (status, later) = (answer.status(), retry_after(&answer));
        let to = answer.headers().get(LOCATION).and_then(|to| Some(to.to_str().ok()?.to_owned()));
        let (no_bucket, mut text) = match &self.way {
            Way::Plain(place) => {
                let advice = self.advice(place, action, status);
                (false, format!("the server answers HTTP {}{advice}", status.as_u16()))
            }
            Way::Signed(signer) => {
                // What cannot be read says nothing; the status does.
                let said = http::text(answer).unwrap_or_default();
                (s3::lacks_bucket(&said), signer.refusal(status.as_u16(), &said))
            }
        };
        if let (true, Way::Plain(_), Some(to)) = (status.is_redirection(), &self.way, to) {
            text.push_str(&format!("; it is at {to} now, which {} must say", self.field));
        }
        if let Some(later) = later.filter(|later| *later > self.limits().pause_max) {
            text.push_str(&format!("; it asks to be left alone for {} s", later.as_secs()));
        }
        match status.as_u16() {
            404 | 410 if !no_bucket => StoreError::Missing(text),
            401 | 403 => StoreError::Denied(text),
            _ if may_pass(status) => StoreError::Unavailable(text),
            _ => StoreError::Refused(text),
        }
    }

    /// What to do about a refusal, for those that mean the same everywhere.
    fn advice(&self, place: &HttpLocation, action: Action<'_>, status: StatusCode) -> String {
        let reads = matches!(action, Action::Get | Action::Head);
        match status.as_u16() {
            401 | 403 if place.headers.is_some() || !reads => {
                format!("; the headers of {} must allow to get, put and delete there", self.field)
            }
            401 | 403 => format!("; {} must be readable without a password", self.field),
            404 | 405 | 409 | 501 if !reads => {
                "; does it take PUT and DELETE below this URL, for folders that are not there yet?".to_owned()
            }
            404 | 410 => format!("; is {} right?", self.field),
            416 => "; the file ends before what is asked for".to_owned(),
            413 | 507 => "; it has no room for a file of this size".to_owned(),
            _ => String::new(),
        }
    }

    fn send(
        &self,
        action: Action<'_>,
        name: &str,
        range: Option<&str>,
        payload: Payload<'_>,
    ) -> Result<Response<Body>, StoreError> {
        self.client.send(&|| self.request(action, name, range), payload)
    }

    fn request(&self, action: Action<'_>, name: &str, range: Option<&str>) -> io::Result<Builder> {
        let mut request = Request::builder().method(action.method());
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        match &self.way {
            Way::Signed(signer) => Ok(request.uri(signer.url(&action, name)?)),
            Way::Plain(place) => {
                let url = match name {
                    "" => place.url.clone(),
                    name => format!("{}/{name}", place.url.trim_end_matches('/')),
                };
                place
                    .headers
                    .iter()
                    .try_fold(request.uri(url), |request, folder| with_headers(request, folder))
            }
        }
    }
}

/// A request with the headers that are files of `folder`.
fn with_headers(mut request: Builder, folder: &Path) -> io::Result<Builder> {
    let unread = |path: &Path, e: io::Error| io::Error::other(format!("cannot read {}: {e}", path.display()));
    for entry in std::fs::read_dir(folder).map_err(|e| unread(folder, e))? {
        let path = entry.map_err(|e| unread(folder, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // A mounted Secret keeps its versions behind such names.
        if name.starts_with("..") {
            continue;
        }
        let value = std::fs::read_to_string(&path).map_err(|e| unread(&path, e))?;
        request = request.header(name, value.trim_end());
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::testing::{Asked, quick, serve, server_at, status, with_body};

    /// A server that gives these answers and has the requests in the end. With status 0 the answer is the body alone.
    fn scripted(answers: &[(u16, &'static str)]) -> crate::testing::Served {
        let answers = answers.to_vec();
        serve(answers.len(), move |i, _| match answers[i] {
            (0, raw) => crate::testing::Answer::Bytes(raw.as_bytes().to_vec()),
            (status, body) => with_body(status, &[("ETag", "\"e\"")], body.as_bytes()),
        })
    }

    /// A bucket whose credentials are in `folder`, and parts of 4 bytes.
    fn bucket(folder: &Path, url: &str) -> Server {
        std::fs::write(folder.join("accessKeyId"), b"id").unwrap();
        std::fs::write(folder.join("secretAccessKey"), b"secret").unwrap();
        let place = json!({"endpoint": url, "bucket": "b", "prefix": "p", "credentials": folder});
        let place = Location::S3(serde_json::from_value(place).unwrap());
        let mut server = Server::with_limits(&place, "checkpoint.destination", quick()).unwrap();
        if let Way::Signed(signer) = &mut server.way {
            signer.part_bytes = 4;
        }
        server
    }

    fn file(folder: &Path) -> File {
        std::fs::write(folder.join("file"), b"0123456789").unwrap();
        File::open(folder.join("file")).unwrap()
    }

    /// Methods and what follows the `?`, without signatures.
    fn lines(asked: &[Asked]) -> Vec<String> {
        let line = |Asked { line, .. }: &Asked| {
            let (path, query) = line.split_once('?').unwrap_or((line, ""));
            let plain: Vec<&str> = query.split('&').filter(|q| !q.starts_with("X-Amz-")).collect();
            format!("{path}?{}", plain.join("&"))
        };
        asked.iter().map(line).collect()
    }

    #[test]
    fn what_may_pass_is_tried_again_with_the_whole_file_and_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let served = scripted(&[(503, ""), (500, ""), (201, "")]);
        server_at(&served.url).put_file("f", &file(folder.path())).unwrap();
        let asked = served.stop();
        assert_eq!(lines(&asked), ["PUT /f?", "PUT /f?", "PUT /f?"]);
        assert!(asked.iter().all(|asked| asked.body == b"0123456789"), "{asked:?}");

        // It answers with something that is no HTTP, as one does that goes away in the middle.
        let served = scripted(&[(0, "garbage\r\n\r\n"), (201, "")]);
        server_at(&served.url).put_file("f", &file(folder.path())).unwrap();
        assert_eq!(served.stop().len(), 2);

        let served = scripted(&[(503, ""); 4]);
        let error = server_at(&served.url).put("f", b"x").unwrap_err().to_string();
        assert_eq!(error, "the server answers HTTP 503");
        assert_eq!(served.stop().len(), 4);

        // What will not change is not asked for twice.
        let served = scripted(&[(403, "")]);
        let error = server_at(&served.url).put("f", b"x").unwrap_err().to_string();
        assert!(error.contains("HTTP 403; the headers of"), "{error}");
        served.stop();
    }

    #[test]
    fn a_bucket_that_is_not_there_is_not_a_file_that_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let no = |code| -> &'static str { format!("<Error><Code>{code}</Code></Error>").leak() };
        let served = scripted(&[(404, no("NoSuchKey")), (404, no("NoSuchBucket")), (404, "")]);
        let server = bucket(folder.path(), &served.url);
        assert!(server.bytes("f", 99).unwrap().is_none());
        let error = server.bytes("f", 99).unwrap_err().to_string();
        assert!(error.contains("make the bucket `b`"), "{error}");
        assert!(server.length("f").unwrap().is_none());
        assert_eq!(lines(&served.stop()), ["GET /b/p/f?", "GET /b/p/f?", "HEAD /b/p/f?"]);
    }

    #[test]
    fn a_long_file_goes_to_a_bucket_in_parts_that_are_forgotten_when_one_fails() {
        const BEGUN: &str = "<InitiateMultipartUploadResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
            <UploadId>u</UploadId></InitiateMultipartUploadResult>";
        const DONE: &str = "<CompleteMultipartUploadResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
            <ETag>e</ETag></CompleteMultipartUploadResult>";
        const ERROR: &str = "<Error><Code>InternalError</Code></Error>";
        let folder = tempfile::tempdir().unwrap();
        let served = scripted(&[(200, BEGUN), (200, ""), (503, ""), (200, ""), (200, ""), (200, DONE)]);
        bucket(folder.path(), &served.url).put_file("f", &file(folder.path())).unwrap();
        let asked = served.stop();
        let expected = [
            "POST /b/p/f?uploads=1",
            "PUT /b/p/f?partNumber=1&uploadId=u",
            "PUT /b/p/f?partNumber=2&uploadId=u",
            "PUT /b/p/f?partNumber=2&uploadId=u",
            "PUT /b/p/f?partNumber=3&uploadId=u",
            "POST /b/p/f?uploadId=u",
        ];
        assert_eq!(lines(&asked), expected);
        let sent: Vec<&[u8]> = asked[..5].iter().map(|asked| asked.body.as_slice()).collect();
        assert_eq!(sent, [&b""[..], b"0123", b"4567", b"4567", b"89"]);
        let parts = String::from_utf8_lossy(&asked[5].body).matches("<PartNumber>").count();
        assert_eq!(parts, 3);

        // The second part is refused; or all are taken, and then nothing comes of them, which the status does not say.
        for answers in [
            &[(200, BEGUN), (200, ""), (403, ""), (204, "")][..],
            &[(200, BEGUN), (200, ""), (200, ""), (200, ""), (200, ERROR), (204, "")],
        ] {
            let served = scripted(answers);
            let error = bucket(folder.path(), &served.url)
                .put_file("f", &file(folder.path()))
                .unwrap_err()
                .to_string();
            assert!(error.contains("HTTP 403") || error.contains("InternalError"), "{error}");
            assert_eq!(lines(&served.stop()).last().unwrap(), "DELETE /b/p/f?uploadId=u");
        }
    }

    /// Whether a real server takes what is signed, and puts parts together.
    #[test]
    #[ignore = "needs a server of S3's API: make test-s3"]
    fn s3_parts_are_the_file() {
        let url = std::env::var("DUNLIN_S3_URL").unwrap();
        let place = json!({"endpoint": url, "bucket": "checkpoints", "prefix": "parts of a file+1"});
        let place = Location::S3(serde_json::from_value(place).unwrap());
        let mut server = Server::new(&place, "checkpoint.destination").unwrap();
        if let Way::Signed(signer) = &mut server.way {
            // The least that S3 takes.
            signer.part_bytes = 5 << 20;
        }
        let content: Vec<u8> =
            (0..(12 << 20) + 7u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, &content).unwrap();
        server.put_file("f", &File::open(&path).unwrap()).unwrap();
        assert_eq!(server.length("f").unwrap(), Some(Some(content.len() as u64)));
        let back = server.bytes("f", 1 << 30).unwrap().unwrap();
        let mut middle = vec![0; 1 << 20];
        server.ranged("f").unwrap().unwrap().read_at(5 << 20, &mut middle).unwrap();
        assert!(middle == content[5 << 20..6 << 20]);
        assert!(back == content, "{} bytes, not those that were put", back.len());
        server.delete("f").unwrap();
        assert!(server.bytes("f", 99).unwrap().is_none() && server.length("f").unwrap().is_none());
        server.delete("f").unwrap();
    }

    #[test]
    fn what_is_carried_for_one_host_goes_to_no_other() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("Authorization"), b"secret\n").unwrap();
        let served = serve(1, |_, _| with_body(302, &[("Location", "http://127.0.0.1:9/f")], b""));
        let place =
            HttpLocation { headers: Some(folder.path().to_owned()), ..HttpLocation::new(&served.url) };
        let server = Server::with_limits(&Location::Http(place), "data.text", quick()).unwrap();
        let error = server.bytes("f", 99).unwrap_err().to_string();
        assert!(error.contains("it is at http://127.0.0.1:9/f now, which data.text must say"), "{error}");
        let asked = served.stop();
        assert!(asked[0].headers.iter().any(|h| h == "authorization: secret"), "{asked:?}");
    }

    #[test]
    fn a_server_that_asks_to_be_left_alone_is() {
        let busy =
            |seconds: &'static str| move |_, _: &Asked| with_body(503, &[("Retry-After", seconds)], b"");
        let served = serve(4, busy("0"));
        let error = server_at(&served.url).put("f", b"x").unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)) && served.stop().len() == 4, "{error}");
        let served = serve(1, busy("3600"));
        let error = server_at(&served.url).put("f", b"x").unwrap_err().to_string();
        assert_eq!(error, "the server answers HTTP 503; it asks to be left alone for 3600 s");
        assert_eq!(served.stop().len(), 1);
    }

    #[test]
    fn redirects_are_followed_but_not_in_a_circle() {
        let served = serve(2, |i, _| match i {
            0 => with_body(302, &[("Location", "/b")], b""),
            _ => with_body(200, &[], b"ab"),
        });
        assert_eq!(server_at(&served.url).bytes("a", 9).unwrap().unwrap(), b"ab");
        assert_eq!(lines(&served.stop()), ["GET /a?", "GET /b?"]);
        let served = serve(6, |_, _| with_body(302, &[("Location", "/a")], b""));
        let error = server_at(&served.url).bytes("a", 9).unwrap_err();
        assert!(matches!(&error, StoreError::Refused(why) if why.contains("in a circle")), "{error}");
        served.stop();
    }

    #[test]
    fn a_file_is_there_or_not_or_that_is_not_known() {
        for (code, absent) in [(404, Some(true)), (410, Some(true)), (403, None), (503, None), (400, None)] {
            let served = serve(if code == 503 { 4 } else { 1 }, move |_, _| status(code));
            let found = server_at(&served.url).ranged("f");
            assert_eq!(found.as_ref().ok().map(Option::is_none), absent, "HTTP {code}");
            if let Err(error) = found {
                assert!(error.to_string().contains(&code.to_string()), "{error}");
                assert_eq!(error.is_absence(), code == 403);
            }
            served.stop();
        }
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error_that_may_pass() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = server_at(&url).bytes("f", 9).unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        assert_eq!(quick().pause, Duration::ZERO);
    }
}
