//! A file of a server as a stream. When it breaks off it goes on where it was, as long as the file is the same.

use std::fs::File;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG};
use ureq::http::{Response, StatusCode};
use ureq::{Body, BodyReader};

use crate::error::StoreError;
use crate::location::Location;
use crate::request::Action;
use crate::server::Server;

/// What tells a file from another that takes its place while it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) total: Option<u64>,
    etag: Option<String>,
}

impl Version {
    /// That of an answer, in which the file has `total` bytes.
    pub(crate) fn of(answer: &Response<Body>, total: Option<u64>) -> Self {
        let etag = answer.headers().get(ETAG).and_then(|e| e.to_str().ok());
        // A weak one is of bytes that may differ.
        Self { total, etag: etag.filter(|e| !e.starts_with("W/")).map(str::to_owned) }
    }

    /// Whether both may be of one file: what only one server says of several is no difference.
    fn may_be(&self, other: &Self) -> bool {
        fn same<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
            a.is_none() || b.is_none() || a == b
        }
        same(&self.total, &other.total) && same(&self.etag, &other.etag)
    }
}

/// Bytes of a file as they come. When the server breaks off it waits and asks again, and gives up when that does not help, when bytes come
/// too slowly, or when they are of another file than before.
pub struct Reader {
    server: Server,
    name: String,
    at: u64,
    /// Where what is asked for ends, if that is before the end of the file.
    end: Option<u64>,
    body: Option<BodyReader<'static>>,
    version: Version,
    /// How often it broke off since bytes last came.
    broken: u32,
    /// The present stretch: where it began, and the time that was waited for its bytes.
    stretch: (u64, Duration),
}

impl Reader {
    pub(crate) fn open(server: &Server, name: &str, from: u64) -> Result<Option<Self>, StoreError> {
        let mut reader = Self::new(server, name, from, None, Version::default());
        Ok(reader.connect()?.then_some(reader))
    }

    /// Bytes of the file of this version, up to `end`. Nothing is asked for until it is read.
    pub(crate) fn new(server: &Server, name: &str, from: u64, end: Option<u64>, version: Version) -> Self {
        let stretch = (from, Duration::ZERO);
        let (server, name) = (server.clone(), name.to_owned());
        Self { server, name, at: from, end, body: None, version, broken: 0, stretch }
    }

    /// Length of the file, where the server says it.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        self.version.total
    }

    /// Asks for what is left; false when there is no such file.
    fn connect(&mut self) -> Result<bool, StoreError> {
        let ranged = self.at > 0 || self.end.is_some();
        let last = self.end.map_or_else(String::new, |end| end.saturating_sub(1).to_string());
        let range = ranged.then(|| format!("bytes={}-{last}", self.at));
        let Some(answer) = self.server.if_there(Action::Get, &self.name, range.as_deref())? else {
            return Ok(false);
        };
        let (begins, total) = match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let (begins, total) = content_range(&answer).ok_or_else(other_range)?;
                if !ranged || begins != self.at {
                    return Err(other_range());
                }
                (begins, total)
            }
            _ if self.end.is_some() => return Err(no_ranges()),
            _ => (0, header(&answer, CONTENT_LENGTH).and_then(|length| length.parse().ok())),
        };
        let version = Version::of(&answer, total);
        if !version.may_be(&self.version) {
            return Err(StoreError::Refused(
                "it was replaced by another file while it was read; start again when it stays as it is"
                    .to_owned(),
            ));
        }
        self.version =
            Version { total: total.or(self.version.total), etag: version.etag.or(self.version.etag.take()) };
        let max = self.server.limits().bytes_max;
        if total.is_some_and(|total| total > max) {
            return Err(too_long(max));
        }
        let mut body = answer.into_body().into_reader();
        // A server that knows no ranges begins anew: what was read before is passed over.
        let before = self.at - begins;
        let passed = io::copy(&mut (&mut body).take(before), &mut io::sink());
        if passed.map_err(|error| self.server.broke(error))? < before {
            return Err(StoreError::Unavailable("the server broke off before where it was".to_owned()));
        }
        self.body = Some(body);
        Ok(true)
    }

    /// Bytes of the present answer; none at the end of what is wanted.
    fn next(&mut self, buffer: &mut [u8]) -> Result<usize, StoreError> {
        if self.body.is_none() && !self.connect()? {
            return Err(StoreError::Missing("it is no longer there".to_owned()));
        }
        let Some(body) = &mut self.body else { return Ok(0) };
        let left = self.end.or(self.version.total).map_or(u64::MAX, |end| end.saturating_sub(self.at));
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let began = Instant::now();
        let read = body.read(&mut buffer[..most]);
        self.stretch.1 += began.elapsed();
        let count = read.map_err(|error| self.server.broke(error))?;
        if count == 0 && left > 0 && left < u64::MAX {
            return Err(StoreError::Unavailable(format!("the server broke off {left} bytes before the end")));
        }
        self.at += count as u64;
        self.keep_pace()?;
        Ok(count)
    }

    /// Neither too many bytes nor too few.
    fn keep_pace(&mut self) -> Result<(), StoreError> {
        let limits = self.server.limits();
        if self.at > limits.bytes_max {
            return Err(too_long(limits.bytes_max));
        }
        let ((from, waited), (bytes, time)) = (self.stretch, limits.pace);
        if waited < time {
            return Ok(());
        }
        if self.at - from < bytes {
            let seconds = time.as_secs();
            return Err(StoreError::Refused(format!(
                "the server sends fewer than {bytes} bytes in {seconds} s, which would take for ever; use a faster one"
            )));
        }
        self.stretch = (self.at, Duration::ZERO);
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.end.or(self.version.total) == Some(self.at) {
            return Ok(0);
        }
        loop {
            match self.next(buffer) {
                Ok(count) => {
                    self.broken = 0;
                    return Ok(count);
                }
                Err(StoreError::Unavailable(why)) => {
                    self.body = None;
                    let Some(pause) = self.server.limits().pause_after(self.broken, None) else {
                        return Err(StoreError::Unavailable(why).into());
                    };
                    self.broken += 1;
                    std::thread::sleep(pause);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Server {
    /// A file from its beginning, if it is there.
    ///
    /// # Errors
    /// When the server does not give it.
    pub fn reader(&self, name: &str) -> Result<Option<Reader>, StoreError> {
        Reader::open(self, name, 0)
    }

    /// A file from byte `from` on, if it is there.
    ///
    /// # Errors
    /// When the server does not give it.
    pub fn reader_from(&self, name: &str, from: u64) -> Result<Option<Reader>, StoreError> {
        Reader::open(self, name, from)
    }

    /// All of a file of at most `max` bytes, if it is there.
    ///
    /// # Errors
    /// When the server does not give it, or it is longer.
    pub fn bytes(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(reader) = self.reader(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        reader.take(max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > max {
            return Err(StoreError::Refused(format!("it has more than {max} bytes; is it the right file?")));
        }
        Ok(Some(bytes))
    }
}

impl Location {
    /// Opens the file that is there, to be read from its beginning. `field`: what says where it is, for messages.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub fn open(&self, field: &str) -> Result<Box<dyn Read>, StoreError> {
        let Self::Path(path) = self else {
            let reader = Server::new(self, field)?.reader("")?;
            return Ok(Box::new(reader.ok_or_else(|| StoreError::missing(self))?));
        };
        // What is no file may never end, or block whoever opens it.
        if !std::fs::metadata(path)?.is_file() {
            let problem = "it is no file, such as a folder, a pipe or a device; put the data into one file";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem).into());
        }
        Ok(Box::new(File::open(path)?))
    }
}

fn header(answer: &Response<Body>, name: ureq::http::HeaderName) -> Option<&str> {
    answer.headers().get(name)?.to_str().ok()
}

/// Where an answer begins, and how long the file is, if it says so.
pub(crate) fn content_range(answer: &Response<Body>) -> Option<(u64, Option<u64>)> {
    let (range, total) = header(answer, CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = total.parse().ok();
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

fn other_range() -> StoreError {
    StoreError::Refused(
        "the server gives other bytes than it was asked for; use one that knows Range requests".to_owned(),
    )
}

pub(crate) fn no_ranges() -> StoreError {
    StoreError::Refused("the server ignores Range requests; use one that knows them".to_owned())
}

pub(crate) fn too_long(max: u64) -> StoreError {
    StoreError::Refused(format!("it has more than {max} bytes, the most that is read"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Limits;
    use crate::testing::{
        Answer, Asked, file_server, head, quick, ranged, serve, server_at, status, with_body,
    };

    const CONTENT: &[u8] = b"0123456789";

    fn all(server: &Server) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        server.reader("f")?.unwrap().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn ranges(asked: &[Asked]) -> Vec<&str> {
        let range = |asked: &'_ Asked| asked.headers.iter().position(|h| h.starts_with("range"));
        asked.iter().map(|a| range(a).map_or("", |i| a.headers[i].as_str())).collect()
    }

    /// All of it is promised, and this much sent.
    fn cut(sent: usize) -> Answer {
        let mut bytes = head(200, &[("Content-Length", "10"), ("ETag", "\"1\"")]);
        bytes.extend_from_slice(&CONTENT[..sent]);
        Answer::Bytes(bytes)
    }

    #[test]
    fn a_stream_that_breaks_off_goes_on_where_it_was() {
        let served = serve(4, |i, _| match i {
            0 => cut(3),
            1 => status(503),
            2 => Answer::Bytes(b"garbage\r\n\r\n".to_vec()),
            _ => ranged(CONTENT, 3, None),
        });
        assert_eq!(all(&server_at(&served.url)).unwrap(), CONTENT);
        assert_eq!(ranges(&served.stop())[1..], ["range: bytes=3-"; 3]);
        // From a server that knows no ranges it is read again, and passed over.
        let served = serve(3, |i, _| cut([4, 2, 10][i]));
        assert_eq!(all(&server_at(&served.url)).unwrap(), CONTENT);
        served.stop();
        // It does not try for ever.
        let served = serve(4, |_, _| cut(0));
        let error = all(&server_at(&served.url)).unwrap_err();
        assert!(matches!(&error, StoreError::Unavailable(_)), "{error}");
        assert_eq!(served.stop().len(), 4);
    }

    #[test]
    fn what_goes_on_is_the_same_file() {
        let other = |headers: &'static [(&'static str, &'static str)]| {
            let served =
                serve(2, move |i, _| if i == 0 { cut(3) } else { with_body(206, headers, b"3456789") });
            let found = all(&server_at(&served.url));
            served.stop();
            found.map_err(|error| error.to_string())
        };
        assert_eq!(other(&[("Content-Range", "bytes 3-9/10")]).unwrap(), CONTENT);
        for (headers, why) in [
            (&[("Content-Range", "bytes 3-9/11")][..], "replaced by another file"),
            (&[("Content-Range", "bytes 3-9/10"), ("ETag", "\"2\"")], "replaced by another file"),
            (&[("Content-Range", "bytes 2-8/10")], "gives other bytes"),
            (&[("Content-Range", "bytes 3-99/10")], "gives other bytes"),
            (&[], "gives other bytes"),
        ] {
            let error = other(headers).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_range_is_exactly_that_whatever_the_server_does() {
        let read = |from: u64, len: usize, answers: fn(usize, &Asked) -> Answer| {
            let served = serve(usize::MAX, answers);
            let found = server_at(&served.url).ranged("f").and_then(|file| {
                let mut buffer = vec![0; len];
                file.unwrap().read_at(from, &mut buffer)?;
                Ok(buffer)
            });
            served.stop();
            found.map_err(|error| error.to_string())
        };
        let whole = |_: usize, asked: &Asked| {
            let (first, last) = asked
                .headers
                .iter()
                .find_map(|h| h.strip_prefix("range: bytes="))
                .unwrap()
                .split_once('-')
                .unwrap();
            ranged(CONTENT, first.parse().unwrap(), last.parse().ok())
        };
        assert_eq!(read(2, 5, whole).unwrap(), b"23456");
        assert_eq!(read(0, 0, whole).unwrap(), b"");
        assert!(read(6, 5, whole).is_err() && read(u64::MAX, 1, whole).is_err());
        for (answers, why) in [
            ((|_, _| with_body(200, &[], CONTENT)) as fn(usize, &Asked) -> Answer, "ignores Range"),
            (|_, _| with_body(206, &[("Content-Range", "bytes 0-0/*")], b"0"), "ignores Range"),
            (
                |i, _| if i == 0 { ranged(CONTENT, 0, Some(0)) } else { with_body(200, &[], CONTENT) },
                "ignores Range",
            ),
            (
                |i, _| if i == 0 { ranged(CONTENT, 0, Some(0)) } else { ranged(CONTENT, 0, Some(4)) },
                "other bytes",
            ),
            (
                |_, _| with_body(206, &[("Content-Range", "bytes 0-0/18446744073709551615")], b"0"),
                "the most that is read",
            ),
        ] {
            let error = read(2, 5, answers).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        // More than was asked for is not taken, less is asked for again.
        let more = |i: usize, _: &Asked| match i {
            0 => ranged(CONTENT, 0, Some(0)),
            1 => ranged(CONTENT, 2, Some(3)),
            _ => ranged(CONTENT, 4, None),
        };
        assert_eq!(read(2, 5, more).unwrap(), b"23456");
    }

    #[test]
    fn a_server_that_is_silent_or_drips_or_never_ends_is_left() {
        let limits = Limits {
            silence: Duration::from_millis(100),
            pace: (10_000, Duration::from_millis(100)),
            bytes_max: 1 << 20,
            attempts: 2,
            ..quick()
        };
        for (answer, why) in [
            ((|| Answer::Silence(Vec::new())) as fn() -> Answer, "silent"),
            (|| Answer::Silence(head(200, &[("Content-Length", "10")])), "silent"),
            (|| Answer::Drip(head(200, &[("Content-Length", "1000000")])), "would take for ever"),
            (|| Answer::Flood(head(200, &[])), "more than 1048576 bytes"),
            (|| Answer::Bytes(head(200, &[("Content-Length", "1048577")])), "more than 1048576 bytes"),
        ] {
            let served = serve(usize::MAX, move |_, _| answer());
            let server = Server::with_limits(&Location::parse(&served.url), "data.text", limits).unwrap();
            let error = all(&server).unwrap_err().to_string();
            assert!(error.contains(why), "{why}: {error}");
            served.stop();
        }
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        for path in ["/dev", "/dev/zero"] {
            let error = Location::parse(path).open("data").err().unwrap().to_string();
            assert!(error.contains("it is no file"), "{error}");
        }
    }

    #[test]
    fn a_text_is_read_whole_or_refused() {
        let served = file_server(CONTENT.to_vec());
        let server = server_at(&served.url);
        assert_eq!(server.bytes("f", 10).unwrap().unwrap(), CONTENT);
        let error = server.bytes("f", 9).unwrap_err().to_string();
        assert!(error.contains("more than 9 bytes"), "{error}");
        served.stop();
    }
}
