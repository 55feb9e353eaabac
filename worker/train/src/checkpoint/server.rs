//! A server of files: a URL that takes PUT, or a bucket of object storage. This is where they differ, in how they are asked and in what a
//! refusal means.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use ureq::http::header::{CONTENT_LENGTH, ETAG};
use ureq::http::request::Builder;
use ureq::http::{Request, Response, StatusCode};
use ureq::{Agent, Body, Error, SendBody};

use super::place::{HttpPlace, Place};
use super::request::{Action, Refusal};
use super::s3::{self, Signer};

/// Time for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Time until an answer begins, once the request is sent.
const RESPONSE: Duration = Duration::from_secs(60);
/// Time for one file, either way.
const TRANSFER: Duration = Duration::from_secs(3600);
/// How often a request is made while what stands in its way may pass.
const ATTEMPTS: u32 = 4;
/// Pause before the second of them; each further one is [`PAUSE_GROWTH`] times as long: 10 s in all.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_GROWTH: u32 = 4;
/// Longest answer that is read for what it says.
const ANSWER_MAX: u64 = 1 << 16;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Payload<'a> {
    Nothing,
    Bytes(&'a [u8]),
    /// `bytes` of a file, from `from` on.
    File {
        file: &'a File,
        from: u64,
        bytes: u64,
    },
}

/// How the server is asked.
enum Way {
    Plain(HttpPlace),
    Signed(Box<Signer>),
}

/// A place on a server, with names below it.
pub(super) struct Server {
    agent: Agent,
    way: Way,
    attempts: u32,
    pause: Duration,
}

impl Server {
    /// What is wrong with `place`, in the words after `checkpoint.destination`, if something is.
    pub(super) fn new(place: &Place) -> Result<Self, String> {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(RESPONSE))
            .timeout_send_body(Some(TRANSFER))
            .timeout_recv_body(Some(TRANSFER));
        let (agent, way) = match place {
            Place::Http(place) => (agent, Way::Plain(place.clone())),
            // A signature is for one host.
            Place::S3(place) => (agent.max_redirects(0), Way::Signed(Box::new(Signer::new(place)?))),
        };
        Ok(Self { agent: agent.build().into(), way, attempts: ATTEMPTS, pause: PAUSE })
    }

    /// A file, if it is there.
    pub(super) fn get(&self, name: &str) -> io::Result<Option<Response<Body>>> {
        self.if_there(Action::Get, name)
    }

    /// Its length, where the server says it, if it is there.
    pub(super) fn length(&self, name: &str) -> io::Result<Option<Option<u64>>> {
        let answer = self.if_there(Action::Head, name)?;
        Ok(answer.map(|a| a.headers().get(CONTENT_LENGTH).and_then(|l| l.to_str().ok()?.parse().ok())))
    }

    /// It is no error when it is not there.
    pub(super) fn delete(&self, name: &str) -> io::Result<()> {
        self.if_there(Action::Delete, name).map(drop)
    }

    pub(super) fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.ask(Action::Put, name, Payload::Bytes(bytes)).map(drop)
    }

    pub(super) fn put_file(&self, name: &str, file: &File) -> io::Result<()> {
        let bytes = file.metadata()?.len();
        match &self.way {
            Way::Signed(signer) if bytes > signer.part_bytes => self.put_parts(signer, name, file, bytes),
            _ => self.ask(Action::Put, name, Payload::File { file, from: 0, bytes }).map(drop),
        }
    }

    fn put_parts(&self, signer: &Signer, name: &str, file: &File, bytes: u64) -> io::Result<()> {
        let parts = signer.parts(bytes)?;
        let upload = s3::upload_id(&text(self.ask(Action::Begin, name, Payload::Bytes(&[]))?)?)?;
        let upload = upload.as_str();
        let send_all = || {
            let mut etags = Vec::with_capacity(parts.len());
            for (number, range) in parts {
                let part = Payload::File { file, from: range.start, bytes: range.end - range.start };
                let answer = self.ask(Action::Part { upload, number }, name, part)?;
                let etag = answer.headers().get(ETAG).and_then(|e| e.to_str().ok());
                etags.push(etag.ok_or_else(|| io::Error::other("a part has no ETag"))?.to_owned());
            }
            let body = signer.complete_body(&etags);
            let answer = self.ask(Action::Complete { upload }, name, Payload::Bytes(body.as_bytes()))?;
            let (status, said) = (answer.status(), text(answer)?);
            if s3::is_complete(&said) { Ok(()) } else { Err(signer.refusal(status.as_u16(), &said).into()) }
        };
        let sent = send_all();
        if sent.is_err() {
            // Parts that nobody completes are stored and paid for. What is told is the first error.
            let _ = self.send(Action::Abort { upload }, name, Payload::Nothing);
        }
        sent
    }

    /// The answer, which is a good one.
    fn ask(&self, action: Action<'_>, name: &str, payload: Payload<'_>) -> io::Result<Response<Body>> {
        let answer = self.send(action, name, payload)?;
        if answer.status().is_success() { Ok(answer) } else { Err(self.refusal(answer).into()) }
    }

    /// The same, unless there is nothing called `name`.
    fn if_there(&self, action: Action<'_>, name: &str) -> io::Result<Option<Response<Body>>> {
        let answer = self.send(action, name, Payload::Nothing)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(Some(answer));
        }
        let refusal = self.refusal(answer);
        if status == StatusCode::NOT_FOUND && !refusal.no_bucket { Ok(None) } else { Err(refusal.into()) }
    }

    fn refusal(&self, answer: Response<Body>) -> Refusal {
        let status = answer.status().as_u16();
        match &self.way {
            Way::Plain(_) => Refusal {
                no_bucket: false,
                text: format!("the server answers HTTP {status}{}", advice(answer.status())),
            },
            // What cannot be read says nothing; the status does.
            Way::Signed(signer) => signer.refusal(status, &text(answer).unwrap_or_default()),
        }
    }

    /// The answer, whatever it is, after as many attempts as may help.
    fn send(&self, action: Action<'_>, name: &str, payload: Payload<'_>) -> io::Result<Response<Body>> {
        let mut pause = self.pause;
        for _ in 1..self.attempts {
            match self.try_once(action, name, payload)? {
                Ok(answer) if !may_pass(answer.status()) => return Ok(answer),
                // A server that breaks off in the middle of its answer is gone, like one that breaks the connection.
                Ok(_)
                | Err(
                    Error::Io(_)
                    | Error::HostNotFound
                    | Error::ConnectionFailed
                    | Error::Protocol(_)
                    | Error::BodyStalled,
                ) => {}
                // The time for an answer is long enough to be spent once.
                Err(error) => return Err(io::Error::other(error)),
            }
            std::thread::sleep(pause);
            pause *= PAUSE_GROWTH;
        }
        self.try_once(action, name, payload)?.map_err(io::Error::other)
    }

    /// The outer error is one of this machine, which another attempt does not change.
    fn try_once(
        &self,
        action: Action<'_>,
        name: &str,
        payload: Payload<'_>,
    ) -> io::Result<Result<Response<Body>, Error>> {
        let request = self.request(action, name)?;
        // Object storage takes no body of unknown length.
        let (length, mut content): (u64, Box<dyn Read + '_>) = match payload {
            Payload::Nothing => {
                let request = request.body(()).map_err(io::Error::other)?;
                return Ok(self.agent.run(request));
            }
            Payload::Bytes(bytes) => (bytes.len() as u64, Box::new(bytes)),
            Payload::File { mut file, from, bytes } => {
                file.seek(SeekFrom::Start(from))?;
                (bytes, Box::new(file.take(bytes)))
            }
        };
        let request = request.header(CONTENT_LENGTH, length).body(SendBody::from_reader(&mut *content));
        Ok(self.agent.run(request.map_err(io::Error::other)?))
    }

    fn request(&self, action: Action<'_>, name: &str) -> io::Result<Builder> {
        let request = Request::builder().method(action.method());
        match &self.way {
            Way::Signed(signer) => Ok(request.uri(signer.url(&action, name)?)),
            Way::Plain(place) => {
                let request = request.uri(format!("{}/{name}", place.url.trim_end_matches('/')));
                place.headers.iter().try_fold(request, |request, folder| with_headers(request, folder))
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

/// What to do about a refusal, for those that mean the same everywhere.
fn advice(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 | 403 => "; the headers of checkpoint.destination must allow to get, put and delete there",
        404 | 405 | 409 | 501 => {
            "; does it take PUT and DELETE below this URL, for folders that are not there yet?"
        }
        413 | 507 => "; it has no room for a file of this size",
        _ => "",
    }
}

/// Whether another attempt may be answered otherwise.
fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504)
}

fn text(mut answer: Response<Body>) -> io::Result<String> {
    let mut text = String::new();
    answer.body_mut().as_reader().take(ANSWER_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use serde_json::json;

    use super::*;
    use crate::checkpoint::Destination;
    use crate::testing::Folder;

    /// Requests in their order: method with path, and body.
    type Asked = Vec<(String, Vec<u8>)>;

    /// A server that gives these answers, one a connection, and returns what it was asked for. With status 0 the answer is the body alone.
    fn scripted(answers: &[(u16, &'static str)]) -> (String, JoinHandle<Asked>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers = answers.to_vec();
        let served = std::thread::spawn(move || {
            let mut asked = Asked::new();
            for (status, body) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut first, mut length) = (String::new(), 0);
                reader.read_line(&mut first).unwrap();
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    let Some((name, value)) = line.trim().split_once(':') else { break };
                    if name.eq_ignore_ascii_case("content-length") {
                        length = value.trim().parse().unwrap();
                    }
                }
                let mut sent = vec![0; length];
                reader.read_exact(&mut sent).unwrap();
                asked.push((first.rsplit_once(' ').unwrap().0.to_owned(), sent));
                if status == 0 {
                    stream.write_all(body.as_bytes()).unwrap();
                    continue;
                }
                let head = format!(
                    "HTTP/1.1 {status} X\r\nETag: \"e\"\r\nConnection: close\r\nContent-Length: {}",
                    body.len()
                );
                write!(stream, "{head}\r\n\r\n{body}").unwrap();
            }
            asked
        });
        (url, served)
    }

    fn server(destination: serde_json::Value) -> Server {
        let Destination::Server(place) = serde_json::from_value(destination).unwrap() else { unreachable!() };
        Server { pause: Duration::ZERO, ..Server::new(&place).unwrap() }
    }

    /// A bucket whose credentials are in `folder`, and parts of 4 bytes.
    fn bucket(folder: &Folder, url: &str) -> Server {
        folder.file("accessKeyId", b"id");
        folder.file("secretAccessKey", b"secret");
        let s3 = json!({"endpoint": url, "bucket": "b", "prefix": "p"});
        let mut server = server(json!({"s3": s3, "credentials": folder.path()}));
        if let Way::Signed(signer) = &mut server.way {
            signer.part_bytes = 4;
        }
        server
    }

    fn file(folder: &Folder) -> File {
        File::open(folder.file("file", b"0123456789")).unwrap()
    }

    /// Methods and what follows the `?`, without signatures.
    fn lines(asked: &[(String, Vec<u8>)]) -> Vec<String> {
        let line = |(line, _): &(String, Vec<u8>)| {
            let (path, query) = line.split_once('?').unwrap_or((line, ""));
            let plain: Vec<&str> = query.split('&').filter(|q| !q.starts_with("X-Amz-")).collect();
            format!("{path}?{}", plain.join("&"))
        };
        asked.iter().map(line).collect()
    }

    #[test]
    fn what_may_pass_is_tried_again_with_the_whole_file_and_not_for_ever() {
        let folder = Folder::new();
        let (url, served) = scripted(&[(503, ""), (500, ""), (201, "")]);
        server(json!(url)).put_file("f", &file(&folder)).unwrap();
        let asked = served.join().unwrap();
        assert_eq!(lines(&asked), ["PUT /f?", "PUT /f?", "PUT /f?"]);
        assert!(asked.iter().all(|(_, sent)| sent == b"0123456789"), "{asked:?}");

        // It answers with something that is no HTTP, as one does that goes away in the middle.
        let (url, served) = scripted(&[(0, "garbage\r\n\r\n"), (201, "")]);
        server(json!(url)).put_file("f", &file(&folder)).unwrap();
        assert_eq!(served.join().unwrap().len(), 2);

        let (url, served) = scripted(&[(503, ""); 4]);
        let error = server(json!(url)).put("f", b"x").unwrap_err().to_string();
        assert_eq!(error, "the server answers HTTP 503");
        assert_eq!(served.join().unwrap().len(), 4);

        // What will not change is not asked for twice.
        let (url, served) = scripted(&[(403, "")]);
        let error = server(json!(url)).put("f", b"x").unwrap_err().to_string();
        assert!(error.contains("HTTP 403; the headers of"), "{error}");
        served.join().unwrap();
    }

    #[test]
    fn a_bucket_that_is_not_there_is_not_a_file_that_is_not_there() {
        let folder = Folder::new();
        let no = |code| -> &'static str { format!("<Error><Code>{code}</Code></Error>").leak() };
        let (url, served) = scripted(&[(404, no("NoSuchKey")), (404, no("NoSuchBucket")), (404, "")]);
        let server = bucket(&folder, &url);
        assert!(server.get("f").unwrap().is_none());
        let error = server.get("f").unwrap_err().to_string();
        assert!(error.contains("make the bucket `b`"), "{error}");
        assert!(server.length("f").unwrap().is_none());
        assert_eq!(lines(&served.join().unwrap()), ["GET /b/p/f?", "GET /b/p/f?", "HEAD /b/p/f?"]);
    }

    #[test]
    fn a_long_file_goes_to_a_bucket_in_parts_that_are_forgotten_when_one_fails() {
        const BEGUN: &str = "<InitiateMultipartUploadResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
            <UploadId>u</UploadId></InitiateMultipartUploadResult>";
        const DONE: &str = "<CompleteMultipartUploadResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
            <ETag>e</ETag></CompleteMultipartUploadResult>";
        const ERROR: &str = "<Error><Code>InternalError</Code></Error>";
        let folder = Folder::new();
        let (url, served) =
            scripted(&[(200, BEGUN), (200, ""), (503, ""), (200, ""), (200, ""), (200, DONE)]);
        bucket(&folder, &url).put_file("f", &file(&folder)).unwrap();
        let asked = served.join().unwrap();
        let expected = [
            "POST /b/p/f?uploads=1",
            "PUT /b/p/f?partNumber=1&uploadId=u",
            "PUT /b/p/f?partNumber=2&uploadId=u",
            "PUT /b/p/f?partNumber=2&uploadId=u",
            "PUT /b/p/f?partNumber=3&uploadId=u",
            "POST /b/p/f?uploadId=u",
        ];
        assert_eq!(lines(&asked), expected);
        let sent: Vec<&[u8]> = asked[..5].iter().map(|(_, sent)| sent.as_slice()).collect();
        assert_eq!(sent, [&b""[..], b"0123", b"4567", b"4567", b"89"]);
        let parts = String::from_utf8_lossy(&asked[5].1).matches("<PartNumber>").count();
        assert_eq!(parts, 3);

        // The second part is refused; or all are taken, and then nothing comes of them, which the status does not say.
        for answers in [
            &[(200, BEGUN), (200, ""), (403, ""), (204, "")][..],
            &[(200, BEGUN), (200, ""), (200, ""), (200, ""), (200, ERROR), (204, "")],
        ] {
            let (url, served) = scripted(answers);
            let error = bucket(&folder, &url).put_file("f", &file(&folder)).unwrap_err().to_string();
            assert!(error.contains("HTTP 403") || error.contains("InternalError"), "{error}");
            assert_eq!(lines(&served.join().unwrap()).last().unwrap(), "DELETE /b/p/f?uploadId=u");
        }
    }

    /// Whether a real server takes what is signed, and puts parts together.
    #[test]
    #[ignore = "needs a server of S3's API: make test-s3"]
    fn s3_parts_are_the_file() {
        let url = std::env::var("DUNLIN_S3_URL").unwrap();
        let s3 = json!({"endpoint": url, "bucket": "checkpoints", "prefix": "parts of a file+1"});
        let mut server = server(json!({"s3": s3}));
        if let Way::Signed(signer) = &mut server.way {
            // The least that S3 takes.
            signer.part_bytes = 5 << 20;
        }
        let content: Vec<u8> =
            (0..(12 << 20) + 7u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let folder = Folder::new();
        server.put_file("f", &File::open(folder.file("file", &content)).unwrap()).unwrap();
        assert_eq!(server.length("f").unwrap(), Some(Some(content.len() as u64)));
        let mut back = Vec::new();
        server.get("f").unwrap().unwrap().body_mut().as_reader().read_to_end(&mut back).unwrap();
        assert!(back == content, "{} bytes, not those that were put", back.len());
        server.delete("f").unwrap();
        assert!(server.get("f").unwrap().is_none() && server.length("f").unwrap().is_none());
        server.delete("f").unwrap();
    }
}
