//! Parsers from text to a valid value, or to what would be right, as the end of a sentence that starts with "must be".

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use bytesize::ByteSize;
use http::{HeaderValue, Uri};
use url::{Host, Position, Url};

use crate::{
    mapping::{Format, NamePattern},
    secret::{self, Secret},
    variance::Call,
};

/// The least memory for undelivered events: a few of the largest must find room.
const MIN_HELD: ByteSize = ByteSize::mib(16);

/// The least room for a body: a number without a unit means bytes, which is seldom intended.
const MIN_BODY: ByteSize = ByteSize::kib(1);

/// More than any machine has, and little enough for arithmetic.
const MAX_SIZE: ByteSize = ByteSize::tib(1);

/// Longer than anything should take, and short enough for arithmetic with clocks.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The most attempts at once, each of which is a task and a connection.
const MAX_CONCURRENCY: usize = 10_000;

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).ok();
    duration.filter(|duration| !duration.is_zero() && *duration <= MAX_DURATION).ok_or_else(|| {
        let days = MAX_DURATION.as_secs() / (24 * 60 * 60);
        format!(r#"a duration such as "10s", more than zero and at most {days} days"#)
    })
}

pub(super) fn body_size(text: &str) -> Result<usize, String> {
    size_from(MIN_BODY, text)
}

pub(super) fn held_size(text: &str) -> Result<usize, String> {
    size_from(MIN_HELD, text)
}

fn size_from(min: ByteSize, text: &str) -> Result<usize, String> {
    let size = text.parse::<ByteSize>().ok().filter(|size| (min..=MAX_SIZE).contains(size));
    size.and_then(|size| usize::try_from(size.as_u64()).ok())
        .ok_or_else(|| format!(r#"a size such as "64MiB", at least {min} and at most {MAX_SIZE}"#))
}

pub(super) fn concurrency(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MAX_CONCURRENCY).contains(count));
    count.ok_or_else(|| format!("a whole number from 1 to {MAX_CONCURRENCY}"))
}

pub(super) fn flag(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "true or false".to_owned())
}

/// Parses an address and a port; `localhost` is the IPv4 loopback address.
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    let address = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}").parse(),
        None => text.parse(),
    };
    address.map_err(|_| r#"an IP address and a port, such as "127.0.0.1:8080" or "0.0.0.0:8080""#.to_owned())
}

pub(super) fn webhook_url(text: &str) -> Result<Url, String> {
    web_url(text).ok_or_else(|| "the http or https URL from Variance > Integrations > PostHog".to_owned())
}

/// Parses a URL that a request can go to.
fn web_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    // A URL may be longer than a request allows, and its host may have characters that a request cannot.
    url.filter(|url| url.as_str().parse::<Uri>().is_ok())
}

/// Removes the user and the password from a URL. Returns true if there were any.
pub(super) fn remove_user(url: &mut Url) -> bool {
    let has_user = !url.username().is_empty() || url.password().is_some();
    if has_user {
        url.set_username("").and_then(|()| url.set_password(None)).expect("a URL with a host can do without them");
    }
    has_user
}

/// True if requests to a URL stay on this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    }
}

pub(super) fn authorization(text: &str) -> Result<HeaderValue, String> {
    let value = HeaderValue::from_str(text).ok().filter(|_| !text.trim().is_empty() && !secret::is_half_quoted(text));
    let mut value = value.ok_or_else(|| {
        "the header's whole value on one line, in ASCII characters and without quotation marks around it".to_owned()
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Parses a type that knows what would be right.
pub(super) fn parsed<T: FromStr<Err = &'static str>>(text: &str) -> Result<T, String> {
    text.parse().map_err(str::to_owned)
}

/// Parses a path. Whether there is a file shows when it is read.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    Ok(text.into())
}

pub(super) fn format(text: &str) -> Result<Format, String> {
    match text {
        "variance" => Ok(Format::Variance),
        "posthog" => Ok(Format::Posthog),
        _ => Err("variance or posthog".to_owned()),
    }
}

pub(super) fn call(text: &str) -> Result<Call, String> {
    text.parse().map_err(|()| format!("one or more of {}", Call::ALL.map(Call::name).join(", ")))
}

pub(super) fn name_pattern(text: &str) -> Result<NamePattern, String> {
    text.parse().map_err(|()| "names of events, or `prefix*` with its only `*` at the end".to_owned())
}

/// Parses a pattern for `filter.include`. It applies only to capture events, whose names never start with `$`.
pub(super) fn included_pattern(text: &str) -> Result<NamePattern, String> {
    let pattern = text.parse().ok().filter(|pattern: &NamePattern| !pattern.is_internal());
    pattern.ok_or_else(|| {
        "names of capture events, which do not start with `$`, or `prefix*` with its only `*` at the end".to_owned()
    })
}

/// Parses a pattern for names that start with `$`, since all others are forwarded anyway.
pub(super) fn property_pattern(text: &str) -> Result<NamePattern, String> {
    let pattern = text.parse().ok().filter(NamePattern::is_internal);
    pattern.ok_or_else(|| {
        "names of properties that start with `$` (all others are forwarded anyway), or `$prefix*` with its only `*` at \
         the end"
            .to_owned()
    })
}

pub(super) fn posthog_url(text: &str) -> Result<Url, String> {
    let url =
        web_url(text).filter(|url| url.query().is_none() && url.username().is_empty() && url.password().is_none());
    let url = url.ok_or(r#"the http or https URL of PostHog's application, such as "https://us.posthog.com""#)?;
    match url.host_str().and_then(|host| host.split_once('.')) {
        Some((region, "i.posthog.com")) => {
            Err(format!("https://{region}.posthog.com: {region}.i.posthog.com only takes events in"))
        }
        _ => Ok(url),
    }
}

pub(super) fn project_id(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "a whole number, such as 12345 in https://us.posthog.com/project/12345".to_owned())
}

pub(super) fn api_key(text: &str) -> Result<Secret, String> {
    let is_usable = !text.is_empty()
        && !text.starts_with(secret::PROJECT_KEY_START)
        && text.chars().all(|character| character.is_ascii_graphic());
    is_usable
        .then(|| Secret::new(text))
        .ok_or_else(|| "a personal API key of PostHog without white space, such as `phx_…`".to_owned())
}

/// Parses the name of a group type.
pub(super) fn group_type(text: &str) -> Result<String, String> {
    match text {
        "" => Err(r#"the name of a group type, such as "company", or not be set at all"#.to_owned()),
        _ => Ok(text.to_owned()),
    }
}

/// Returns the host of a webhook URL, and as little of the rest as of a credential: whoever knows a webhook's path may
/// post to it.
pub(super) fn url_without_secrets(text: &str) -> String {
    let Ok(mut url) = webhook_url(text) else { return String::new() };
    url.set_fragment(None);
    let origin = url.origin().ascii_serialization();
    match url[Position::BeforePath..].trim_start_matches('/') {
        "" => format!("{origin}/"),
        rest => format!("{origin}/… ({})", masked(rest)),
    }
}

/// Describes a wrong URL without showing any of it, as the end of a sentence.
pub(super) fn described_url(text: &str) -> String {
    let start = text.to_ascii_lowercase();
    match start.starts_with("http://") || start.starts_with("https://") {
        true => "no request can be made to it: is the host right, and is the URL complete?".to_owned(),
        false => "it does not begin with https:// or http://".to_owned(),
    }
}

/// Returns a credential's length, and its end if the credential is long enough to spare it.
pub(super) fn masked(secret: &str) -> String {
    let length = secret.chars().count();
    match secret.char_indices().rev().nth(1) {
        Some((end, _)) if length >= 16 => format!("{length} characters ending in {:?}", &secret[end..]),
        _ => format!("{length} characters"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_a_length() {
        assert_eq!(duration("2500ms").unwrap(), Duration::from_millis(2500));
        assert_eq!(duration("1h 30m").unwrap(), Duration::from_secs(5400));
        for wrong in ["", "10", "0s", "0", "-1s", "ten seconds", "1e3s", "400days", "99999999999999999999s"] {
            assert!(duration(wrong).unwrap_err().starts_with("a duration"), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_have_a_unit() {
        for (right, bytes) in [("64MiB", 64 << 20), ("2000", 2000), ("1.5 kB", 1500), ("1TiB", 1 << 40)] {
            assert_eq!(body_size(right), Ok(bytes), "{right}");
        }
        for wrong in ["", "0", "0MiB", "-1", "64 apples", "64", "2TiB", "18446744073709551615", "NaN", "inf"] {
            assert!(body_size(wrong).unwrap_err().starts_with("a size"), "{wrong}");
        }
        assert_eq!(held_size("16MiB"), Ok(16 << 20));
        assert!(held_size("16777215").unwrap_err().contains("at least 16.0 MiB"));
    }

    #[test]
    fn addresses_have_a_port() {
        for (right, address) in
            [("127.0.0.1:8080", "127.0.0.1:8080"), ("localhost:80", "127.0.0.1:80"), ("[::]:0", "[::]:0")]
        {
            assert_eq!(listen(right).unwrap().to_string(), address);
        }
        for wrong in ["", "8080", ":8080", "localhost", "localhost:", "example.com:80", "127.0.0.1:65536", "::1:80 "] {
            assert!(listen(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_web_urls_with_a_host_are_webhook_urls() {
        for right in ["https://variance.example/hook?a=b", "http://127.0.0.1:1", "HTTPS://[::1]/"] {
            assert!(webhook_url(right).is_ok(), "{right}");
        }
        for wrong in ["", "variance.example/hook", "localhost:80", "ftp://variance.example", "https://", "mailto:a@b"] {
            assert!(webhook_url(wrong).is_err(), "{wrong}");
        }
        // They parse, but no request can go to them.
        for wrong in ["https://<variance>/hook", "https://{variance}/hook", "https://variance\"/hook", "https://a`b/"] {
            assert!(webhook_url(wrong).is_err(), "{wrong}");
        }
        assert!(webhook_url(&format!("https://variance.example/{}", "a".repeat(1 << 16))).is_err());
    }

    #[test]
    fn a_url_is_loopback_by_its_host() {
        for (url, expected) in [
            ("http://localhost:1/", true),
            ("http://a.localhost/", true),
            ("http://127.1.2.3/", true),
            ("http://[::1]/", true),
            ("http://[::ffff:127.0.0.1]/", true),
            ("http://localhost.example/", false),
            ("http://10.0.0.1/", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), expected, "{url}");
        }
    }

    #[test]
    fn user_and_password_are_removed() {
        for with in ["https://me:secret@host/a?b", "https://me@host/a?b", "https://:secret@host/a?b"] {
            let mut url = with.parse().unwrap();
            assert!(remove_user(&mut url));
            assert_eq!(url.as_str(), "https://host/a?b");
            assert!(!remove_user(&mut url));
        }
    }

    #[test]
    fn of_a_webhook_url_no_more_than_the_host_is_shown_whole() {
        for (url, shown) in [
            ("https://variance.example", "https://variance.example/"),
            ("https://variance.example/hook", "https://variance.example/… (4 characters)"),
            ("https://variance.example:443/?a=b", "https://variance.example/… (4 characters)"),
            (
                "http://me:secret@[::1]:8080/hooks/posthog?team=7#part",
                r#"http://[::1]:8080/… (20 characters ending in "=7")"#,
            ),
            ("not a URL", ""),
        ] {
            assert_eq!(url_without_secrets(url), shown, "{url}");
        }
    }

    #[test]
    fn a_masked_secret_shows_its_end_only_if_it_is_long() {
        for (secret, mask) in [
            ("", "0 characters"),
            ("short", "5 characters"),
            ("0123456789abcdef", r#"16 characters ending in "ef""#),
            ("ääääääääääääääää", r#"16 characters ending in "ää""#),
        ] {
            assert_eq!(masked(secret), mask);
        }
    }
}
