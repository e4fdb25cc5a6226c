//! The authentication of senders.
//!
//! Any one valid credential suffices, even beside a wrong one: a token in a header, a token as a batch's `api_key`, or
//! a [Standard Webhooks](https://www.standardwebhooks.com) signature. Most requests are judged by their headers alone,
//! before a byte of the body is read. Comparisons take the same time whatever is wrong and whichever credential
//! matches; only lengths may show.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, RwLock},
    time::{Duration, Instant, SystemTime},
};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use ring::hmac;
use subtle::{Choice, ConstantTimeEq};

use crate::{
    json::Raw,
    metrics::AuthFailureLabel,
    secret::{self, Secret},
};

const CONNECTOR_TOKEN: HeaderName = HeaderName::from_static("x-connector-token");

/// How far a signature's timestamp may be from the time of arrival.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// The least time between two reads of the credential files: strangers must not keep the disk busy.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// The most signatures of one request that are checked: a sender that changes its secret sends two.
const MAX_SIGNATURES: usize = 16;

/// Base64 as lenient as Node's decoder, which PostHog's sender uses: padding may be missing.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The credentials that a sender may present; any one of them suffices. If there are none, anybody may send.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthSettings {
    /// Bearer tokens.
    pub tokens: Vec<Token>,
    /// The file that the tokens were read from, one per line.
    pub token_file: Option<PathBuf>,
    /// Standard Webhooks signing secrets.
    pub signing_secrets: Vec<SigningSecret>,
    /// The file that the signing secrets were read from, one per line.
    pub signing_secret_file: Option<PathBuf>,
}

impl AuthSettings {
    /// The kind of credential that senders need, for people to read.
    pub fn mode(&self) -> &'static str {
        match (self.tokens.is_empty(), self.signing_secrets.is_empty()) {
            (true, true) => "anonymous",
            (false, true) => "token",
            (true, false) => "signature",
            (false, false) => "token or signature",
        }
    }

    /// Returns the same settings with the current contents of the files.
    fn read_again(&self) -> io::Result<Self> {
        let mut settings = self.clone();
        if let Some(file) = &self.token_file {
            settings.tokens = read_lines(file, Token::PREFIXES)?;
        }
        if let Some(file) = &self.signing_secret_file {
            settings.signing_secrets = read_lines(file, &[])?;
        }
        Ok(settings)
    }
}

/// Reads the credentials in a file, one per line.
fn read_lines<T: FromStr<Err = &'static str>>(file: &Path, prefixes: &[&str]) -> io::Result<Vec<T>> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.display()));
    let text = secret::read(file).map_err(named)?;
    let credentials = secret::lines(&text).map(|line| secret::repaired(line, prefixes).0.parse());
    credentials.collect::<Result<_, _>>().map_err(|right| {
        io::Error::new(io::ErrorKind::InvalidData, format!("each line of {} must be {right}", file.display()))
    })
}

/// A bearer token of at least 16 characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token(Secret);

/// The key of a Standard Webhooks signature: at least 24 bytes, in base64, with or without `whsec_` before it.
#[derive(Clone)]
pub struct SigningSecret {
    key: hmac::Key,
    text: Secret,
}

/// The judge of credentials, shared by its clones. Credentials from a file are read again when a sender presents an
/// unknown one, though not too often, so that they can be changed while the service runs.
#[derive(Clone)]
pub struct Auth(Arc<RwLock<Current>>);

struct Current {
    settings: Arc<AuthSettings>,
    read_again: Option<Instant>,
}

/// The verdict on the headers of a request that does not have to be denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The headers prove that the sender may send.
    Proven,
    /// The body may still prove it. Until it does, it must be treated as a stranger's.
    Unproven {
        /// True if a signature that covers the body can prove it: see [`Auth::signature_is_valid`].
        signature: bool,
        /// True if the `api_key` of its envelope can prove it: see [`Auth::api_key_is_valid`].
        api_key: bool,
        /// The reason to deny the request if the body proves nothing.
        otherwise: Denied,
    },
}

/// The reason why a sender may not send. Its text is for the sender: it says what would be right and repeats nothing
/// that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A token is required, and there is none.
    #[error("no credential: the header `Authorization: Bearer <token>` is missing")]
    NoToken,
    /// A token is required, and neither the headers nor the body have a valid one.
    #[error(
        "no valid credential: the token must be in the header `Authorization: Bearer <token>` or be the batch's `api_key`"
    )]
    NoApiKey,
    /// A signature is required and there is none.
    #[error("no credential: the headers `webhook-id`, `webhook-timestamp` and `webhook-signature` are missing")]
    NoSignature,
    /// There are tokens, none of them valid.
    #[error(
        "the token is wrong: the header must be `Authorization: Bearer <token>`, with one of the connector's tokens"
    )]
    WrongToken,
    /// Some but not all of a signature's headers are present.
    #[error("the signature is incomplete: it needs all of `webhook-id`, `webhook-timestamp` and `webhook-signature`")]
    PartialSignature,
    /// The id would make the parts of the signed content ambiguous.
    #[error("`webhook-id` must not be empty or contain a full stop")]
    UnusableId,
    /// The timestamp is not a number, or is too large a one.
    #[error("`webhook-timestamp` must be a whole number of seconds since 1970")]
    UnreadableTimestamp,
    /// The signature was made too long ago, or in the future.
    #[error(
        "the signature's timestamp is more than {} minutes off: compare the clocks of the sender and the connector",
        TOLERANCE.as_secs() / 60
    )]
    StaleTimestamp,
    /// There is no signature of the one kind that a shared secret makes.
    #[error("`webhook-signature` must be `v1,` followed by an HMAC-SHA256 in base64")]
    UnreadableSignature,
    /// The signature is for another body, or was made with another secret.
    #[error(
        "the signature is wrong: it must be made with the connector's signing secret, over the body exactly as it is sent"
    )]
    WrongSignature,
}

impl From<Denied> for AuthFailureLabel {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::NoToken | Denied::NoApiKey | Denied::NoSignature => Self::Missing,
            Denied::WrongToken
            | Denied::PartialSignature
            | Denied::UnusableId
            | Denied::UnreadableTimestamp
            | Denied::StaleTimestamp
            | Denied::UnreadableSignature
            | Denied::WrongSignature => Self::Wrong,
        }
    }
}

impl Auth {
    /// Creates a judge that accepts these credentials, or everybody if there are none.
    pub fn new(settings: AuthSettings) -> Self {
        Self(Arc::new(RwLock::new(Current { settings: Arc::new(settings), read_again: None })))
    }

    /// Replaces the credentials.
    pub fn reload(&self, settings: AuthSettings) {
        self.0.write().expect(NO_PANIC).settings = Arc::new(settings);
    }

    /// Judges a request by its headers, which arrived at `now`. `takes_api_key` says whether an `api_key` in the body
    /// counts on its route.
    ///
    /// # Errors
    /// When the sender may not send, whatever the body says.
    pub fn judge_head(&self, headers: &HeaderMap, now: SystemTime, takes_api_key: bool) -> Result<Proof, Denied> {
        let is_proven = |settings: &AuthSettings| {
            let mut is_right =
                Choice::from(u8::from(settings.tokens.is_empty() && settings.signing_secrets.is_empty()));
            for candidate in header_tokens(headers) {
                is_right |= settings.is_token(candidate);
            }
            is_right.into()
        };
        if self.prove(|| header_tokens(headers).next().is_some(), is_proven) {
            return Ok(Proof::Proven);
        }

        let AuthSettings { tokens, signing_secrets, .. } = &*self.settings();
        let signed = match signing_secrets.is_empty() {
            true => Err(Denied::NoSignature),
            false => Signed::of(headers).and_then(|signed| signed.check_age(now)),
        };
        let api_key = takes_api_key && !tokens.is_empty();
        let otherwise = match signed {
            Ok(()) => Denied::WrongSignature,
            Err(Denied::NoSignature) if tokens.is_empty() => Denied::NoSignature,
            Err(Denied::NoSignature) if header_tokens(headers).next().is_some() => Denied::WrongToken,
            Err(Denied::NoSignature) if api_key => Denied::NoApiKey,
            Err(Denied::NoSignature) => Denied::NoToken,
            Err(flaw) => flaw,
        };
        match (signed.is_ok(), api_key) {
            (false, false) => Err(otherwise),
            (signature, api_key) => Ok(Proof::Unproven { signature, api_key, otherwise }),
        }
    }

    /// True if the `api_key` of a body's envelope is one of the tokens.
    pub fn api_key_is_valid(&self, api_key: Raw<'_>) -> bool {
        let Some(text) = api_key.as_text() else { return false };
        self.prove(|| true, |settings| settings.is_token(&text.unescaped()).into())
    }

    /// True if the headers hold a signature of `body`, the bytes as received, by one of the signing secrets.
    ///
    /// The age of the signature is checked by [`Self::judge_head`], since a body may take its time to arrive.
    pub fn signature_is_valid(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        let Ok(signed) = Signed::of(headers) else { return false };
        let is_proven = |settings: &AuthSettings| {
            let mut is_right = Choice::from(0);
            for SigningSecret { key, .. } in &settings.signing_secrets {
                let mut content = hmac::Context::with_key(key);
                for part in [signed.id, b".", signed.timestamp, b".", body] {
                    content.update(part);
                }
                let right = content.sign();
                for signature in &signed.signatures {
                    is_right |= signature.ct_eq(right.as_ref());
                }
            }
            is_right.into()
        };
        self.prove(|| true, is_proven)
    }

    /// True if the credentials prove the sender, after the files are read again for one that presents an unknown
    /// credential.
    fn prove(&self, presents_any: impl Fn() -> bool, is_proven: impl Fn(&AuthSettings) -> bool) -> bool {
        let is_proven = |settings: Arc<AuthSettings>| is_proven(&settings);
        is_proven(self.settings()) || presents_any() && self.read_again(Instant::now()) && is_proven(self.settings())
    }

    fn settings(&self) -> Arc<AuthSettings> {
        Arc::clone(&self.0.read().expect(NO_PANIC).settings)
    }

    /// Reads the files again, unless that was done a moment ago. Returns true if that has changed the credentials.
    fn read_again(&self, now: Instant) -> bool {
        let Current { settings, read_again } = &mut *self.0.write().expect(NO_PANIC);
        let has_file = settings.token_file.is_some() || settings.signing_secret_file.is_some();
        if !has_file || read_again.is_some_and(|last| now.duration_since(last) < READ_AGAIN_AFTER) {
            return false;
        }
        *read_again = Some(now);
        match settings.read_again() {
            Ok(read) if read == **settings => false,
            Ok(read) => {
                *settings = Arc::new(read);
                let AuthSettings { tokens, signing_secrets, .. } = &**settings;
                let (tokens, signing_secrets) = (tokens.len(), signing_secrets.len());
                tracing::info!(tokens, signing_secrets, "the senders' credentials were read again: they have changed");
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the senders' credentials could not be read again: the previous ones stay valid");
                false
            }
        }
    }
}

const NO_PANIC: &str = "no panic while it is held";

impl AuthSettings {
    fn is_token(&self, candidate: &[u8]) -> Choice {
        let mut is_token = Choice::from(0);
        for Token(token) in &self.tokens {
            is_token |= token.expose().as_bytes().ct_eq(candidate);
        }
        is_token
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AuthSettings { tokens, signing_secrets, .. } = &*self.settings();
        f.debug_struct("Auth").field("tokens", &tokens.len()).field("signing_secrets", &signing_secrets.len()).finish()
    }
}

/// Yields whatever may be a token: of `Authorization` the part after `Bearer` and the whole, and `X-Connector-Token`.
fn header_tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    fn bearer(value: &[u8]) -> Option<&[u8]> {
        let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
    }
    let values = |name| headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    let authorization = values(AUTHORIZATION).flat_map(|value| bearer(value).into_iter().chain([value]));
    authorization.chain(values(CONNECTOR_TOKEN)).map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// The headers of a Standard Webhooks signature (specification, "Webhook headers").
struct Signed<'h> {
    id: &'h [u8],
    timestamp: &'h [u8],
    signatures: Vec<[u8; 32]>,
}

impl<'h> Signed<'h> {
    fn of(headers: &'h HeaderMap) -> Result<Self, Denied> {
        let [id, timestamp, signature] =
            ["webhook-id", "webhook-timestamp", "webhook-signature"].map(|name| headers.get(name));
        let (id, timestamp) = match (id, timestamp, signature) {
            (Some(id), Some(timestamp), Some(_)) => (id.as_bytes(), timestamp.as_bytes()),
            (None, None, None) => return Err(Denied::NoSignature),
            _ => return Err(Denied::PartialSignature),
        };
        if id.is_empty() || id.contains(&b'.') {
            return Err(Denied::UnusableId);
        }
        let all = headers.get_all("webhook-signature").into_iter().map(HeaderValue::as_bytes);
        let signatures: Vec<_> = all
            .flat_map(|value| value.split(|&byte| byte == b' '))
            .take(MAX_SIGNATURES)
            .filter_map(|versioned| BASE64.decode(versioned.strip_prefix(b"v1,")?).ok()?.try_into().ok())
            .collect();
        match signatures.is_empty() {
            true => Err(Denied::UnreadableSignature),
            false => Ok(Self { id, timestamp, signatures }),
        }
    }

    fn check_age(&self, now: SystemTime) -> Result<(), Denied> {
        let timestamp = str::from_utf8(self.timestamp).ok().and_then(|text| text.parse().ok());
        let timestamp = timestamp.map(Duration::from_secs).ok_or(Denied::UnreadableTimestamp)?;
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        match now.abs_diff(timestamp) <= TOLERANCE {
            true => Ok(()),
            false => Err(Denied::StaleTimestamp),
        }
    }
}

impl Token {
    /// Text that is often pasted along with a token and is not part of it.
    pub const PREFIXES: &[&str] = &["Authorization:", "X-Connector-Token:", "Bearer "];
}

impl FromStr for Token {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().chars().count() < 16 {
            return Err("a token of at least 16 characters");
        }
        if text.contains(char::is_control) || text.trim() != text || secret::is_half_quoted(text) {
            return Err("a token without control characters, and without white space or quotation marks around it");
        }
        Ok(Self(Secret::new(text)))
    }
}

impl FromStr for SigningSecret {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let key = BASE64.decode(text.strip_prefix("whsec_").unwrap_or(text));
        let key = key.map_err(|_| "a signing secret in base64 (letters, digits, `+` and `/`), such as `whsec_…`")?;
        if key.len() < 24 {
            return Err("a signing secret of at least 24 bytes in base64, such as `whsec_…`");
        }
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key), text: Secret::new(text) })
    }
}

impl PartialEq for SigningSecret {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret([hidden])")
    }
}

#[cfg(test)]
mod tests;
