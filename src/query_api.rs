//! PostHog's Query API (`POST /api/projects/:id/query/`): one query at a time, with errors that say what the caller can
//! do.
//!
//! Every query is calculated anew, because PostHog would otherwise answer with results that are hours old.

use std::{
    error::Error as _,
    fmt, io,
    time::{Duration, SystemTime},
};

use http::{
    HeaderValue, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER},
};
use reqwest::{Client, Response, redirect};
use rustls::CertificateError;
use serde_json::{Map, Value, json};
use url::Url;

use crate::{
    backoff,
    destination::{Network, USER_AGENT},
    json::{Raw, Scanner, SyntaxError},
    secret::Secret,
};

/// The longest that a query may take: gateways in front of PostHog cut it off after about a minute.
const TIMEOUT: Duration = Duration::from_secs(100);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The most bytes of a reply.
const MAX_REPLY_BYTES: usize = 32 << 20;

/// The most characters of PostHog's own error text that are shown.
const MAX_DETAIL: usize = 300;

/// A modifier that reads persons as they were when the event came in, without joining the table of all persons.
const PERSONS_ON_EVENTS: (&str, &str) = ("personsOnEventsMode", "person_id_no_override_properties_on_events");

/// A project of a PostHog, and the key to it.
#[derive(Clone, Debug)]
pub struct PosthogSettings {
    /// The address of PostHog's web application.
    pub url: Url,
    /// The project's number.
    pub project_id: u64,
    /// A personal API key with the scope `query:read`.
    pub api_key: Secret,
    /// The way to PostHog.
    pub network: Network,
}

/// A query in HogQL, with the values of its placeholders.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// The text, in which `{name}` stands for a value.
    pub text: String,
    /// The values by name.
    pub values: Map<String, Value>,
}

/// The failure of a query, by what the caller can do. The text says what happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Ask again later, and not before this time if PostHog named one.
    #[error("{0}")]
    AskLater(String, Option<Duration>),
    /// Ask again later, unless PostHog has never answered.
    #[error("{0}")]
    NoAnswer(String),
    /// Ask for less at once.
    #[error("{0}")]
    AskForLess(String),
    /// Give up until somebody has done what the text says.
    #[error("{0}")]
    GiveUp(String),
}

/// A reply, whose rows have as many values as there are columns.
#[derive(Debug)]
pub struct Reply {
    text: String,
    columns: usize,
}

/// A client of one project.
pub struct QueryApi {
    client: Client,
    settings: PosthogSettings,
    endpoint: Url,
    authorization: HeaderValue,
    /// The value by which this PostHog is asked to calculate anew.
    refresh: Value,
    persons_on_events: bool,
}

impl QueryApi {
    /// Creates a client that has asked nothing yet.
    ///
    /// # Errors
    /// When TLS cannot be set up, or the key cannot stand in a header.
    pub fn new(settings: PosthogSettings) -> anyhow::Result<Self> {
        let client = settings.network.client(Client::builder());
        let client = client
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .build()?;
        let path = format!("{}/api/projects/{}/query/", settings.url.path().trim_end_matches('/'), settings.project_id);
        let mut endpoint = settings.url.clone();
        endpoint.set_path(&path);
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", settings.api_key.expose()))?;
        authorization.set_sensitive(true);
        let refresh = Value::from("force_blocking");
        Ok(Self { client, settings, endpoint, authorization, refresh, persons_on_events: true })
    }

    /// Asks once. Options that this PostHog does not know, or no longer knows, are dropped and the query is repeated.
    ///
    /// # Errors
    /// The failure, by what the caller can do: see [`QueryError`].
    pub async fn ask(&mut self, query: &Query, columns: &[&str]) -> Result<Reply, QueryError> {
        loop {
            let reply = self.send(query).await?;
            let status = reply.status();
            let headers = reply.headers().clone();
            let limit = if status.is_success() { MAX_REPLY_BYTES } else { 64 << 10 };
            let text = read(reply, limit).await?;
            if status.is_success() {
                return self.reply(text, columns);
            }
            let detail = detail(&text);
            if status == StatusCode::BAD_REQUEST {
                // Older versions take a truth value, and reading persons by a join is better than not reading them.
                if text.contains("refresh") && self.refresh.is_string() {
                    self.refresh = Value::from(true);
                    continue;
                }
                if std::mem::take(&mut self.persons_on_events) {
                    continue;
                }
            }
            let retry_after =
                headers.get(RETRY_AFTER).and_then(|value| backoff::retry_after(value.as_bytes(), SystemTime::now()));
            let location = headers.get(LOCATION).and_then(|location| self.endpoint.join(location.to_str().ok()?).ok());
            return Err(self.error(status, &detail, retry_after, location.as_ref()));
        }
    }

    async fn send(&self, Query { text, values }: &Query) -> Result<Response, QueryError> {
        let mut query = json!({"kind": "HogQLQuery", "query": text, "values": values});
        if self.persons_on_events {
            let (name, value) = PERSONS_ON_EVENTS;
            query["modifiers"] = json!({name: value});
        }
        let body = json!({"query": query, "refresh": self.refresh}).to_string();
        let request = self.client.post(self.endpoint.clone()).header(AUTHORIZATION, &self.authorization);
        let sent = request.header(CONTENT_TYPE, "application/json").body(body).send().await;
        sent.map_err(|error| fault(&error))
    }

    fn reply(&self, text: String, columns: &[&str]) -> Result<Reply, QueryError> {
        let reply = Reply { text, columns: columns.len() };
        if !reply.text.trim_start().starts_with('{') {
            let problem = "PostHog answered with something other than JSON, such as a login page: posthog.url must be the \
                           address of PostHog itself";
            return Err(QueryError::GiveUp(problem.to_owned()));
        }
        let Ok(body) = Raw::parse(&reply.text) else {
            return Err(QueryError::AskLater("PostHog's reply was cut short".to_owned(), None));
        };
        let members = body.members();
        let member = |name: &str| members.iter().rfind(|(key, _)| key.as_written() == name).map(|(_, value)| *value);
        if let Some(error) = member("error").and_then(Raw::non_null) {
            return Err(QueryError::GiveUp(format!("PostHog could not answer: {}", shown(error.as_str()))));
        }
        let named: Option<Vec<String>> =
            member("columns").and_then(|columns| serde_json::from_str(columns.as_str()).ok());
        if member("results").is_none_or(|results| !results.is_array()) || named.is_none_or(|named| named != columns) {
            let problem = "PostHog answered with columns that were not asked for: posthog.url must be the address of \
                           PostHog itself";
            return Err(QueryError::GiveUp(problem.to_owned()));
        }
        Ok(reply)
    }

    fn error(
        &self,
        status: StatusCode,
        detail: &str,
        retry_after: Option<Duration>,
        location: Option<&Url>,
    ) -> QueryError {
        let answered = match detail {
            "" => format!("PostHog answered {status}"),
            detail => format!("PostHog answered {status}: {detail}"),
        };
        let host = self.settings.url.host_str().unwrap_or_default();
        let project = self.settings.project_id;
        match status.as_u16() {
            300..=399 => {
                let to = location.map_or_else(String::new, |url| format!(" to {}", url.origin().ascii_serialization()));
                QueryError::GiveUp(format!(
                    "{answered}, a redirect{to}: set posthog.url to the address that it leads to"
                ))
            }
            401 => QueryError::GiveUp(format!(
                "{answered}. {host} does not know posthog.api_key: it must be a personal API key (phx_…) of this PostHog \
                 (US and EU Cloud have keys of their own), from Settings > Personal API keys, with the scope query:read"
            )),
            403 if detail.contains("scope") => QueryError::GiveUp(format!(
                "{answered}. posthog.api_key lacks a scope: give it query:read in Settings > Personal API keys"
            )),
            403 => QueryError::GiveUp(format!(
                "{answered}. posthog.api_key has no access to project {project} (posthog.project_id): give it access in \
                 Settings > Personal API keys, or take the number from Settings > Project"
            )),
            404 => QueryError::GiveUp(format!(
                "{answered}. There is no project {project} at {host}: posthog.project_id is the number in Settings > \
                 Project, and posthog.url must be the address of PostHog itself"
            )),
            429 if detail.contains("limit: 0") => {
                QueryError::GiveUp(format!("{answered}. The project's quota is used up, so waiting does not help"))
            }
            408 | 425 | 429 | 502 | 503 => QueryError::AskLater(answered, retry_after),
            413 | 500 | 504 | 512 | 524 => QueryError::AskForLess(answered),
            501 | 505..=511 | 100..=499 => QueryError::GiveUp(answered),
            _ => QueryError::AskLater(answered, retry_after),
        }
    }
}

impl fmt::Debug for QueryApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryApi").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Reply {
    /// Returns the rows.
    ///
    /// # Errors
    /// When a row does not have as many values as there are columns.
    pub fn rows(&self) -> Result<Vec<Vec<Raw<'_>>>, QueryError> {
        let mut rows = Vec::new();
        let scanned = Scanner::new(&self.text).object(|scanner, key| {
            if key.as_written() != "results" {
                return scanner.value().map(drop);
            }
            rows.clear();
            scanner.array(|scanner| {
                let mut row = Vec::with_capacity(self.columns);
                scanner.array(|scanner| {
                    row.push(scanner.value()?);
                    Ok::<_, SyntaxError>(())
                })?;
                rows.push(row);
                Ok(())
            })
        });
        match scanned {
            Ok(()) if rows.iter().all(|row| row.len() == self.columns) => Ok(rows),
            _ => Err(QueryError::GiveUp("PostHog answered with rows in an unexpected form".to_owned())),
        }
    }
}

/// Reads a reply within its limit.
async fn read(mut reply: Response, limit: usize) -> Result<String, QueryError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = reply.chunk().await.map_err(|error| fault(&error))? {
        if bytes.len() + chunk.len() > limit {
            return Err(QueryError::AskForLess(format!("PostHog's reply was larger than {} MiB", limit >> 20)));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// Turns an error of the client into one for the caller. Its own text names the URL, so the last cause is shown
/// instead.
fn fault(error: &reqwest::Error) -> QueryError {
    let (mut next, mut cause, mut certificate) = (error.source(), String::new(), None);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(error)) = error.downcast_ref() {
            certificate = Some(error);
        }
        cause = format!(" ({error})");
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    if let Some(error) = certificate {
        let hint = match error {
            CertificateError::UnknownIssuer => ": SSL_CERT_FILE can name a bundle with the authority that issued it",
            _ => "",
        };
        return QueryError::GiveUp(format!("PostHog's certificate cannot be trusted{cause}{hint}"));
    }
    match error {
        error if error.is_connect() => QueryError::NoAnswer(format!("PostHog cannot be reached{cause}")),
        error if error.is_timeout() => QueryError::AskForLess("PostHog did not answer in time".to_owned()),
        _ => QueryError::AskLater(format!("the connection to PostHog broke{cause}"), None),
    }
}

/// Returns PostHog's own description of an error.
fn detail(text: &str) -> String {
    let body: Value = serde_json::from_str(text).unwrap_or_default();
    // A sentence follows.
    shown(body["detail"].as_str().or_else(|| body["error"].as_str()).unwrap_or_default().trim_end_matches('.'))
}

/// Puts a text on one line, and shortens it.
fn shown(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(MAX_DETAIL).collect()
}
