//! The configuration: each part's settings, read from flags, the environment and a file.
//!
//! Nothing is validated here and used elsewhere: what is read is parsed into what each part's own settings hold. All
//! problems are told at once, each with its key and where the wrong value came from, and none with a secret.

use std::{ffi::OsString, fmt, net::SocketAddr, time::Duration};

pub use self::{
    keys::{FILE_VARIABLE, KEYS, Key, help},
    sources::{Flags, Origin},
};
use self::{
    reader::{Reader, Reported},
    sources::Sources,
};
use crate::{
    auth::AuthSettings,
    destination::{Authorization, DestinationSettings},
    mapping, outbox, server, service,
    telemetry::LogSettings,
};

mod file;
mod keys;
mod reader;
mod sources;
mod values;

/// When PostHog's webhook destination gives up on a reply (`EXTERNAL_REQUEST_TIMEOUT_MS` of its workers).
const WEBHOOK_SENDER_GIVES_UP: Duration = Duration::from_secs(3);

/// When PostHog's HTTP batch export gives up on a reply (the default of its HTTP client, aiohttp).
const BATCH_SENDER_GIVES_UP: Duration = Duration::from_secs(300);

/// When `docker stop` kills what does not stop by itself.
const DOCKER_KILLS: Duration = Duration::from_secs(10);

/// The settings of all parts.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the service does.
    pub service: service::ServiceSettings,
    /// What is logged.
    pub log: LogSettings,
}

/// A configuration, and what can be said about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Every setting with its origin, in the order of [`KEYS`].
    pub settings: Vec<Setting>,
    /// What is possible, but most likely not meant.
    pub warnings: Vec<String>,
}

/// What a setting is, and where that came from.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Which one it is.
    pub key: &'static Key,
    /// Its value, of secrets only the length and the end; nothing if it has none.
    pub value: Option<String>,
    /// Where the value came from.
    pub origin: Origin,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// At least one; each names the setting, where its value came from and what would be right.
    pub problems: Vec<String>,
}

/// Loads the configuration from the command line, the environment and the file that one of them names.
///
/// # Errors
/// Everything that is wrong.
pub fn load(flags: &Flags, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Loaded, Error> {
    let mut sources = Sources::new(flags, variables);
    sources.read_file().map_err(Error::one)?;
    let mut reader = Reader::new(sources);
    let mut warnings = Vec::new();

    let destination = destination(&mut reader, &mut warnings);
    let listen = reader.value("server.listen", values::listen);
    let server = server(&mut reader, &mut warnings, listen);
    let auth = auth(&mut reader);
    let access = access(&mut reader, &mut warnings, listen, auth.as_ref());
    let mapping = mapping(&mut reader);
    let outbox = outbox(&mut reader);
    let log = log(&mut reader);

    warnings.extend(reader.sources().unknown_variables());
    let (settings, problems) = reader.finish();
    match (destination, server, auth, access, mapping, outbox, log) {
        (Ok(destination), Ok(server), Ok(auth), Ok(()), Ok(mapping), Ok(outbox), Ok(log)) if problems.is_empty() => {
            let service = service::ServiceSettings { server, auth, mapping, destination, outbox };
            let config = Config { service, log };
            Ok(Loaded { config, settings, warnings })
        }
        _ => Err(Error { problems }),
    }
}

/// Reads `server.listen` alone, whatever may be wrong with the rest. The file is read only if neither the command line
/// nor the environment says it.
///
/// # Errors
/// When it is wrong, or when the file cannot be read.
pub fn listen(flags: &Flags, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<SocketAddr, Error> {
    let key = Key::named("server.listen");
    let mut sources = Sources::new(flags, variables);
    if !sources.find(key).map_err(Error::one)?.is_some_and(|given| given.origin != Origin::Default) {
        sources.read_file().map_err(Error::one)?;
    }
    let mut reader = Reader::new(sources);
    let listen = reader.value(key.name, values::listen);
    listen.map_err(|Reported| Error { problems: reader.into_problems() })
}

/// Reads what concerns the mapping alone, whatever may be wrong or missing elsewhere.
///
/// # Errors
/// When that is wrong, or when there is something wrong with the file.
pub fn mapping_alone(
    flags: &Flags,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<mapping::MappingSettings, Error> {
    let mut sources = Sources::new(flags, variables);
    sources.read_file().map_err(Error::one)?;
    let mut reader = Reader::new(sources);
    let mapping = mapping(&mut reader);
    let (_, problems) = reader.finish();
    mapping.ok().filter(|_| problems.is_empty()).ok_or(Error { problems })
}

/// What it takes to forward events without receiving any.
#[derive(Clone, Debug)]
pub struct Forwarding {
    /// What is forwarded, and how.
    pub mapping: mapping::MappingSettings,
    /// Where it goes.
    pub destination: DestinationSettings,
    /// How it is delivered.
    pub outbox: outbox::Settings,
    /// How long stopping may take.
    pub shutdown_grace: Duration,
    /// What is possible, but most likely not meant.
    pub warnings: Vec<String>,
}

/// Reads what it takes to forward events, whatever may be wrong or missing of the server's settings.
///
/// # Errors
/// When that is wrong, or when there is something wrong with the file.
pub fn forwarding(
    flags: &Flags,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Forwarding, Error> {
    let mut sources = Sources::new(flags, variables);
    sources.read_file().map_err(Error::one)?;
    let mut reader = Reader::new(sources);
    let mut warnings = Vec::new();
    let destination = destination(&mut reader, &mut warnings);
    let mapping = mapping(&mut reader);
    let outbox = outbox(&mut reader);
    let shutdown_grace = reader.value("delivery.shutdown_grace", values::duration);
    let (_, problems) = reader.finish();
    match (destination, mapping, outbox, shutdown_grace) {
        (Ok(destination), Ok(mapping), Ok(outbox), Ok(shutdown_grace)) if problems.is_empty() => {
            Ok(Forwarding { mapping, destination, outbox, shutdown_grace, warnings })
        }
        _ => Err(Error { problems }),
    }
}

fn destination(reader: &mut Reader, warnings: &mut Vec<String>) -> Result<DestinationSettings, Reported> {
    let webhook_url = reader.option("variance.webhook_url", values::webhook_url);
    let authorization = reader.secret("variance.authorization", "variance.authorization_file", values::authorization);
    let attempt_timeout = reader.value("delivery.attempt_timeout", values::duration);
    let webhook_url = webhook_url.and_then(|url| {
        let mut url = url
            .ok_or_else(|| reader.missing("variance.webhook_url", "copy it from Variance > Integrations > PostHog"))?;
        let name = reader.named("variance.webhook_url");
        if values::remove_user(&mut url) {
            warnings.push(format!(
                "{name} has a user or a password, which is not sent: set variance.authorization instead"
            ));
        }
        if url.scheme() == "http" && !values::is_loopback(&url) {
            warnings.push(format!("{name} is plain http: events and the credential can be read on their way"));
        }
        Ok(url)
    });
    let authorization = authorization.and_then(|authorization| {
        let from = "it is the value of the header that Variance > Integrations > PostHog shows; variance.authorization_file \
                    can name a file with it";
        authorization.ok_or_else(|| reader.missing("variance.authorization", from))
    });
    let (value, file) = authorization?;
    Ok(DestinationSettings {
        webhook_url: webhook_url?,
        authorization: Authorization { value, file },
        attempt_timeout: attempt_timeout?,
        use_proxy: true,
    })
}

fn server(
    reader: &mut Reader,
    warnings: &mut Vec<String>,
    listen: Result<SocketAddr, Reported>,
) -> Result<server::ServerSettings, Reported> {
    let webhook_deadline = reader.value("server.webhook_deadline", values::duration);
    let batch_deadline = reader.value("server.batch_deadline", values::duration);
    let max_body = reader.value("server.max_body", values::size);
    let shutdown_grace = reader.value("delivery.shutdown_grace", values::duration);
    let settings = server::ServerSettings {
        listen: listen?,
        webhook_deadline: webhook_deadline?,
        batch_deadline: batch_deadline?,
        max_body: max_body?,
        shutdown_grace: shutdown_grace?,
        head_timeout: server::HEAD_TIMEOUT,
    };
    for (name, deadline, end) in [
        ("server.webhook_deadline", settings.webhook_deadline, WEBHOOK_SENDER_GIVES_UP),
        ("server.batch_deadline", settings.batch_deadline, BATCH_SENDER_GIVES_UP),
    ] {
        if deadline >= end {
            let (name, end) = (reader.named(name), humantime::format_duration(end));
            warnings.push(format!("{name} is not under {end}: PostHog gives up then, and never sees the reply"));
        }
    }
    if settings.shutdown_grace > DOCKER_KILLS {
        let (name, end) = (reader.named("delivery.shutdown_grace"), humantime::format_duration(DOCKER_KILLS));
        warnings.push(format!("{name} is more than {end}: Docker kills then unless told otherwise (`--stop-timeout`)"));
    }
    Ok(settings)
}

fn auth(reader: &mut Reader) -> Result<AuthSettings, Reported> {
    let tokens = reader.secrets("server.token", "server.token_file", values::token);
    let signing_secrets = reader.secrets("server.signing_secret", "server.signing_secret_file", values::signing_secret);
    Ok(AuthSettings { tokens: tokens?, signing_secrets: signing_secrets? })
}

/// Whether others can send without a credential, and whether that is meant.
fn access(
    reader: &mut Reader,
    warnings: &mut Vec<String>,
    listen: Result<SocketAddr, Reported>,
    auth: Result<&AuthSettings, &Reported>,
) -> Result<(), Reported> {
    let allow_anonymous = reader.value("server.allow_anonymous", values::flag)?;
    let (listen, AuthSettings { tokens, signing_secrets }) = (listen?, auth.map_err(|reported| *reported)?);
    if listen.ip().to_canonical().is_loopback() || !tokens.is_empty() || !signing_secrets.is_empty() {
        return Ok(());
    }
    let name = reader.named("server.listen");
    if allow_anonymous {
        let allowed = reader.named("server.allow_anonymous");
        warnings
            .push(format!("{name} is {listen} and {allowed} is true: whoever reaches it can send events to Variance"));
        return Ok(());
    }
    let [token, secret, anonymous] = ["server.token", "server.signing_secret", "server.allow_anonymous"]
        .map(|name| format!("{name} ({})", Key::named(name).variable()));
    Err(reader.problem(format!(
        "{name} is {listen}, which others can reach, and no credential is asked of senders: set {token}, or {secret}, \
         or, if only who may send can reach it, {anonymous} to true"
    )))
}

fn mapping(reader: &mut Reader) -> Result<mapping::MappingSettings, Reported> {
    let format = reader.value("variance.format", values::format);
    let calls = reader.list("filter.calls", values::call);
    let exclude = reader.list("filter.exclude", values::name_pattern);
    let person_traits = reader.value("filter.person_traits", values::flag);
    let account_group = reader.option("filter.account_group", values::text);
    let calls = calls.and_then(|calls| match calls.is_empty() {
        true => {
            let name = reader.named("filter.calls");
            Err(reader.problem(format!("{name} is empty: nothing would be forwarded")))
        }
        false => Ok(calls),
    });
    Ok(mapping::MappingSettings {
        format: format?,
        calls: calls?,
        exclude: exclude?,
        person_traits: person_traits?,
        account_group: account_group?,
    })
}

fn outbox(reader: &mut Reader) -> Result<outbox::Settings, Reported> {
    let concurrency = reader.value("delivery.concurrency", values::concurrency);
    let retry_for = reader.value("delivery.retry_for", values::duration);
    let max_held = reader.value("delivery.max_held", values::held_size);
    Ok(outbox::Settings {
        concurrency: concurrency?,
        retry_for: retry_for?,
        max_held: max_held?,
        pacing: outbox::Pacing::default(),
    })
}

fn log(reader: &mut Reader) -> Result<LogSettings, Reported> {
    let format = reader.option("log.format", values::log_format);
    let level = reader.value("log.level", values::log_level);
    Ok(LogSettings { format: format?, level: level? })
}

impl Error {
    fn one(problem: String) -> Self {
        Self { problems: vec![problem] }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

#[cfg(test)]
mod tests;
