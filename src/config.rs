//! The configuration: each part's settings, read from flags, the environment and a file.
//!
//! Every text is parsed into the type that the settings of its part hold. All problems are reported at once, each with
//! its key and the origin of the wrong value, and none with a secret.
//!
//! # How a setting is added
//!
//! 1. A field in the settings of the part that it is for: nothing that builds or takes these apart compiles without it.
//! 2. A row in `config/keys.rs`, listed in [`KEYS`], with the function that parses it (in `config/values.rs`, unless the
//!    type parses itself).
//! 3. Reading it in the function of its part below: `reader.get(&ROW)` for one with a default, else `option`, `list`,
//!    `secret` or `secrets`. A test finds a row that is not listed, or that no loader reads.
//! 4. Whether it takes a restart, in `Reload::reload` of `service.rs`: for a setting of the server or the outbox, nothing
//!    compiles without it. Those of the other parts change while the service runs, but for the log's (`telemetry.rs`).
//! 5. `config.example.toml` and the table in docs/configuration.md: tests say what is missing there, and print the table.

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf, time::Duration};

use url::Url;

pub use self::{
    given::Origin,
    keys::{FILE_VARIABLE, KEYS, Key},
    sources::{Flags, Variables},
};
use self::{
    keys::{
        ACCOUNT_GROUP, ALLOW_ANONYMOUS, ANONYMOUS, ATTEMPT_TIMEOUT, AUTHORIZATION, AUTHORIZATION_FILE, BATCH_DEADLINE,
        CALLS, CONCURRENCY, EXCLUDE, FORMAT, INCLUDE, KEEP_PROPERTIES, LISTEN, LOG_FORMAT, LOG_LEVEL, MAX_BODY,
        MAX_HELD, PERSON_TRAITS, POSTHOG_API_KEY, POSTHOG_API_KEY_FILE, POSTHOG_PROJECT_ID, POSTHOG_URL, RETRY_FOR,
        SHUTDOWN_GRACE, SIGNING_SECRET, SIGNING_SECRET_FILE, TOKEN, TOKEN_FILE, WEBHOOK_DEADLINE, WEBHOOK_URL,
        WEBHOOK_URL_FILE,
    },
    reader::{Reader, Reported},
    sources::Sources,
};
use crate::{
    auth::AuthSettings,
    destination::{Authorization, CONNECTIONS_KEPT_FOR, DestinationSettings, Network},
    mapping::MappingSettings,
    outbox,
    query_api::PosthogSettings,
    server::{self, ServerSettings},
    service::ServiceSettings,
    telemetry::LogSettings,
    variance::Call,
};

mod file;
mod given;
mod keys;
mod reader;
mod sources;
mod values;

/// The time after which PostHog's webhook destination gives up on a reply (`EXTERNAL_REQUEST_TIMEOUT_MS` of its
/// workers).
const WEBHOOK_SENDER_GIVES_UP: Duration = Duration::from_secs(3);

/// The time after which PostHog's HTTP batch export gives up on a reply (the default of its HTTP client, aiohttp).
const BATCH_SENDER_GIVES_UP: Duration = Duration::from_secs(300);

/// The time after which `docker stop` kills a container that does not stop by itself.
const DOCKER_KILLS: Duration = Duration::from_secs(10);

/// The settings of `serve`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The settings of the service.
    pub service: ServiceSettings,
    /// The settings of the log.
    pub log: LogSettings,
}

/// The settings for forwarding events without receiving any.
#[derive(Clone, Debug)]
pub struct Forwarding {
    /// The PostHog from which events are fetched, if they are.
    pub posthog: Option<PosthogSettings>,
    /// The rules by which events are mapped.
    pub mapping: MappingSettings,
    /// The place to which events are posted.
    pub destination: DestinationSettings,
    /// The rules of delivery.
    pub outbox: outbox::OutboxSettings,
    /// The longest that stopping may take.
    pub shutdown_grace: Duration,
}

/// A configuration, or the part of one that a command reads, with its origins and warnings.
#[derive(Clone, Debug)]
pub struct Loaded<T = Config> {
    /// The settings.
    pub config: T,
    /// Every setting that was read, with its origin, in the order of [`KEYS`].
    pub settings: Vec<Setting>,
    /// Warnings of what is possible, but most likely not intended.
    pub warnings: Vec<String>,
}

impl<T> Loaded<T> {
    /// Returns the file that the webhook URL was read from.
    pub fn webhook_url_file(&self) -> Option<PathBuf> {
        let setting = self.settings.iter().find(|setting| setting.key.name == WEBHOOK_URL.key.name)?;
        setting.origin.secret_file()
    }
}

/// A setting's value and its origin.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The setting.
    pub key: &'static Key,
    /// Its value, or `None` if it has none. Of a secret, only the length and the end.
    pub value: Option<String>,
    /// The origin of the value.
    pub origin: Origin,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.join("\n"))]
pub struct Error {
    /// The problems, at least one. Each names the setting, the origin of its value and what would be right.
    pub problems: Vec<String>,
}

/// Loads the configuration from the command line, the environment and the file that one of them names.
///
/// # Errors
/// Everything that is wrong.
pub fn load(flags: &Flags, variables: &Variables) -> Result<Loaded, Error> {
    read(flags, variables, service)
}

fn service(reader: &mut Reader) -> Result<Config, Reported> {
    let destination = destination(reader);
    let listen = reader.get(&LISTEN);
    let server = server(reader, listen);
    let auth = auth(reader, listen);
    let mapping = mapping(reader);
    let outbox = outbox(reader);
    let log = log(reader);
    reader.warn_of_unknown_variables();
    let service =
        ServiceSettings { server: server?, auth: auth?, mapping: mapping?, destination: destination?, outbox: outbox? };
    Ok(Config { service, log: log? })
}

/// Reads `server.listen` alone, whatever may be wrong with the rest. The file is read only if neither the command line
/// nor the environment sets it.
///
/// # Errors
/// When the setting is wrong, or the file cannot be read.
pub fn listen(flags: &Flags, variables: &Variables) -> Result<SocketAddr, Error> {
    let mut sources = Sources::new(flags, variables);
    if !sources.find(&LISTEN.key).map_err(Error::one)?.is_some_and(|given| given.origin != Origin::Default) {
        sources.read_file().map_err(Error::one)?;
    }
    let mut reader = Reader::new(sources);
    let listen = reader.get(&LISTEN);
    Ok(reader.finish(listen)?.config)
}

/// Reads the settings of the mapping alone, whatever may be wrong or missing elsewhere.
///
/// # Errors
/// When one of them is wrong, or there is something wrong with the file.
pub fn mapping_alone(flags: &Flags, variables: &Variables) -> Result<MappingSettings, Error> {
    Ok(read(flags, variables, mapping)?.config)
}

/// Reads the settings for forwarding events, and for fetching them from PostHog if asked to, whatever may be wrong or
/// missing in the server's.
///
/// # Errors
/// When one of them is wrong or missing, or there is something wrong with the file.
pub fn forwarding(flags: &Flags, variables: &Variables, from_posthog: bool) -> Result<Loaded<Forwarding>, Error> {
    read(flags, variables, |reader| forwarded(reader, from_posthog))
}

fn forwarded(reader: &mut Reader, from_posthog: bool) -> Result<Forwarding, Reported> {
    let destination = destination(reader);
    let mapping = mapping(reader);
    let outbox = outbox(reader);
    let shutdown_grace = reader.get(&SHUTDOWN_GRACE);
    let posthog = from_posthog.then(|| posthog_api(reader)).transpose();
    Ok(Forwarding {
        posthog: posthog?,
        mapping: mapping?,
        destination: destination?,
        outbox: outbox?,
        shutdown_grace: shutdown_grace?,
    })
}

/// Reads the settings for fetching events from PostHog, whatever may be wrong or missing elsewhere. If none of them is
/// set and none is required, there are none.
///
/// # Errors
/// When one of them is wrong, or missing where others are set, or there is something wrong with the file.
pub fn posthog(
    flags: &Flags,
    variables: &Variables,
    is_required: bool,
) -> Result<Loaded<Option<PosthogSettings>>, Error> {
    read(flags, variables, |reader| {
        let (url, project_id) = (reader.option(&POSTHOG_URL), reader.option(&POSTHOG_PROJECT_ID));
        match (url, project_id, reader.secret(&POSTHOG_API_KEY, &POSTHOG_API_KEY_FILE)) {
            (Ok(None), Ok(None), Ok(None)) if !is_required => Ok(None),
            _ => posthog_api(reader).map(Some),
        }
    })
}

/// Reads the settings of the destination, whatever may be wrong or missing elsewhere.
///
/// # Errors
/// When one of them is wrong, or there is something wrong with the file.
pub fn destination_alone(flags: &Flags, variables: &Variables) -> Result<Loaded<DestinationSettings>, Error> {
    read(flags, variables, destination)
}

/// The part of the configuration that a command reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The settings that [`load`] reads.
    Service,
    /// The settings that [`load`] and [`posthog`] read.
    All,
    /// The settings that [`forwarding`] reads.
    Forwarding,
    /// The settings that [`mapping_alone`] reads.
    Mapping,
    /// The setting that [`listen`] reads.
    Listen,
}

impl Part {
    /// Returns the part's settings, in the order of their documentation.
    fn keys(self) -> Vec<&'static Key> {
        let mut reader = Reader::new(Sources::default());
        match self {
            Self::Service => drop(service(&mut reader)),
            Self::All => drop((service(&mut reader), posthog_api(&mut reader))),
            Self::Forwarding => drop(forwarded(&mut reader, true)),
            Self::Mapping => drop(mapping(&mut reader)),
            Self::Listen => drop(reader.get(&LISTEN)),
        }
        KEYS.iter().copied().filter(|key| reader.has_read(key)).collect()
    }

    /// Returns the part's settings as text for the command line's help.
    pub fn help(self) -> String {
        let mut text =
            format!("Settings, by environment variable or in the file that --config or {FILE_VARIABLE} names:\n");
        for Key { name, variables, default, doc, .. } in self.keys() {
            let default = default.map(|default| format!(" [default: {default}]")).unwrap_or_default();
            write!(text, "\n  {} ({name}){default}\n      {doc}", variables.join(", ")).expect("a string takes all");
        }
        text
    }
}

/// Returns the result of `settings`, if there is nothing wrong with it or with the file.
fn read<T>(
    flags: &Flags,
    variables: &Variables,
    settings: impl FnOnce(&mut Reader) -> Result<T, Reported>,
) -> Result<Loaded<T>, Error> {
    let mut sources = Sources::new(flags, variables);
    sources.read_file().map_err(Error::one)?;
    let mut reader = Reader::new(sources);
    let value = settings(&mut reader);
    reader.check_file();
    reader.finish(value)
}

fn destination(reader: &mut Reader) -> Result<DestinationSettings, Reported> {
    let webhook_url = reader.secret(&WEBHOOK_URL, &WEBHOOK_URL_FILE);
    let authorization = reader.secret(&AUTHORIZATION, &AUTHORIZATION_FILE);
    let attempt_timeout = reader.get(&ATTEMPT_TIMEOUT);
    let from = "copy it from Variance > Integrations > PostHog";
    let webhook_url = reader.required(webhook_url, &WEBHOOK_URL.key, from).map(|(mut url, _)| {
        let name = reader.named(&WEBHOOK_URL.key);
        if values::remove_user(&mut url) {
            let instead = AUTHORIZATION.key.name;
            reader.warn(format!("{name} has a user or a password, which is not sent: set {instead} instead"));
        }
        if url.scheme() == "http" && !values::is_loopback(&url) {
            reader.warn(format!("{name} is plain http: events and the credential can be read on their way"));
        }
        url
    });
    let from = "copy the header's whole value from Variance > Integrations > PostHog, or name a file with it in \
                variance.authorization_file";
    let authorization = reader.required(authorization, &AUTHORIZATION.key, from);
    let webhook_url = webhook_url.and_then(|url| network(reader, url));
    let ((value, file), (webhook_url, network)) = (authorization?, webhook_url?);
    Ok(DestinationSettings {
        webhook_url,
        authorization: Authorization { value, file },
        attempt_timeout: attempt_timeout?,
        network,
        connections_kept_for: CONNECTIONS_KEPT_FOR,
    })
}

/// Adds the network settings for the way to a URL.
fn network(reader: &mut Reader, url: Url) -> Result<(Url, Network), Reported> {
    match Network::from_variables(&url, |name| reader.sources.foreign_variable(name)) {
        Ok((network, warnings)) => {
            for warning in warnings {
                reader.warn(warning);
            }
            Ok((url, network))
        }
        Err(problems) => {
            for problem in problems {
                reader.problem(problem);
            }
            Err(Reported)
        }
    }
}

fn server(reader: &mut Reader, listen: Result<SocketAddr, Reported>) -> Result<ServerSettings, Reported> {
    let webhook_deadline = reader.get(&WEBHOOK_DEADLINE);
    let batch_deadline = reader.get(&BATCH_DEADLINE);
    let max_body = reader.get(&MAX_BODY);
    let shutdown_grace = reader.get(&SHUTDOWN_GRACE);
    let settings = ServerSettings {
        listen: listen?,
        webhook_deadline: webhook_deadline?,
        batch_deadline: batch_deadline?,
        max_body: max_body?,
        shutdown_grace: shutdown_grace?,
        head_timeout: server::HEAD_TIMEOUT,
    };
    for (row, deadline, end) in [
        (&WEBHOOK_DEADLINE, settings.webhook_deadline, WEBHOOK_SENDER_GIVES_UP),
        (&BATCH_DEADLINE, settings.batch_deadline, BATCH_SENDER_GIVES_UP),
    ] {
        if deadline >= end {
            let name = reader.named(&row.key);
            let [deadline, end] = [deadline, end].map(humantime::format_duration);
            reader.warn(format!(
                "{name} is {deadline}, but PostHog gives up after {end} and does not see a later reply: set it below that"
            ));
        }
    }
    if settings.shutdown_grace > DOCKER_KILLS && reader.is_in_container() {
        let name = reader.named(&SHUTDOWN_GRACE.key);
        let [grace, end] = [settings.shutdown_grace, DOCKER_KILLS].map(humantime::format_duration);
        reader.warn(format!(
            "{name} is {grace}, but by default Docker kills a container {end} after asking it to stop: give it more \
             time (`--stop-timeout`)"
        ));
    }
    Ok(settings)
}

/// Reads who may send. It is an error if others could send without a credential, unless that is allowed explicitly.
fn auth(reader: &mut Reader, listen: Result<SocketAddr, Reported>) -> Result<AuthSettings, Reported> {
    let tokens = reader.secrets(&TOKEN, &TOKEN_FILE);
    let signing_secrets = reader.secrets(&SIGNING_SECRET, &SIGNING_SECRET_FILE);
    let allow_anonymous = reader.get(&ALLOW_ANONYMOUS);
    let ((tokens, token_file), (signing_secrets, signing_secret_file)) = (tokens?, signing_secrets?);
    let settings = AuthSettings { tokens, token_file, signing_secrets, signing_secret_file };
    let (listen, allow_anonymous) = (listen?, allow_anonymous?);
    let has_credential = !settings.tokens.is_empty() || !settings.signing_secrets.is_empty();
    if has_credential || listen.ip().to_canonical().is_loopback() {
        return Ok(settings);
    }
    let name = reader.named(&LISTEN.key);
    if allow_anonymous {
        let allowed = reader.named(&ALLOW_ANONYMOUS.key);
        reader.warn(format!(
            "{name} is {listen} and {allowed} is true: anybody who reaches this address can send events to Variance"
        ));
        return Ok(settings);
    }
    let [token, secret, anonymous] =
        [&TOKEN.key, &SIGNING_SECRET.key, &ALLOW_ANONYMOUS.key].map(|key| format!("{} ({})", key.name, key.variable()));
    Err(reader.problem(format!(
        "{name} is {listen}, which others can reach, but senders need no credential: set {token} or {secret}. If only \
         senders that you trust can reach it, set {anonymous} to true instead"
    )))
}

fn mapping(reader: &mut Reader) -> Result<MappingSettings, Reported> {
    let format = reader.get(&FORMAT);
    let calls = reader.list(&CALLS);
    let exclude = reader.list(&EXCLUDE);
    let include = reader.list(&INCLUDE);
    let anonymous = reader.get(&ANONYMOUS);
    let keep_properties = reader.list(&KEEP_PROPERTIES);
    let person_traits = reader.get(&PERSON_TRAITS);
    let account_group = reader.option(&ACCOUNT_GROUP);
    let calls = calls.and_then(|calls| match calls.is_empty() {
        true => {
            let name = reader.named(&CALLS.key);
            Err(reader.problem(format!("{name} is empty, so nothing would be forwarded: name at least one call")))
        }
        false => Ok(calls),
    });
    if let (Ok(calls), Ok(exclude), Ok(include)) = (&calls, &exclude, &include)
        && !include.is_empty()
    {
        let included = reader.named(&INCLUDE.key);
        if !calls.contains(&Call::Capture) {
            let calls = reader.named(&CALLS.key);
            reader.problem(format!("{included} names capture events, but {calls} does not have `capture`: add it"));
        }
        for lost in include.iter().filter(|name| exclude.iter().any(|pattern| pattern.covers(name))) {
            let excluded = reader.named(&EXCLUDE.key);
            reader.problem(format!("{included} and {excluded} both name {lost}: remove it from one of them"));
        }
    }
    Ok(MappingSettings {
        format: format?,
        calls: calls?,
        exclude: exclude?,
        include: include?,
        anonymous: anonymous?,
        keep_properties: keep_properties?,
        person_traits: person_traits?,
        account_group: account_group?,
    })
}

fn outbox(reader: &mut Reader) -> Result<outbox::OutboxSettings, Reported> {
    let concurrency = reader.get(&CONCURRENCY);
    let retry_for = reader.get(&RETRY_FOR);
    let max_held = reader.get(&MAX_HELD);
    Ok(outbox::OutboxSettings {
        concurrency: concurrency?,
        retry_for: retry_for?,
        abandon: true,
        max_held: max_held?,
        pacing: outbox::Pacing::default(),
    })
}

fn posthog_api(reader: &mut Reader) -> Result<PosthogSettings, Reported> {
    let url = reader.option(&POSTHOG_URL);
    let project_id = reader.option(&POSTHOG_PROJECT_ID);
    let api_key = reader.secret(&POSTHOG_API_KEY, &POSTHOG_API_KEY_FILE);
    let from = "it is https://us.posthog.com, https://eu.posthog.com or the address of your own PostHog";
    let url = reader.required(url, &POSTHOG_URL.key, from).inspect(|url| {
        if url.scheme() == "http" && !values::is_loopback(url) {
            let name = reader.named(&POSTHOG_URL.key);
            reader.warn(format!("{name} is plain http: events and the key can be read on their way"));
        }
    });
    let from = "it is the number in the URL of every page of the project";
    let project_id = reader.required(project_id, &POSTHOG_PROJECT_ID.key, from);
    let from = "create a personal API key with the scope query:read in PostHog's settings, or name a file with it in \
                posthog.api_key_file";
    let api_key = reader.required(api_key, &POSTHOG_API_KEY.key, from);
    let url = url.and_then(|url| network(reader, url));
    let ((url, network), (api_key, _)) = (url?, api_key?);
    Ok(PosthogSettings { url, project_id: project_id?, api_key, network })
}

fn log(reader: &mut Reader) -> Result<LogSettings, Reported> {
    let (format, level) = (reader.option(&LOG_FORMAT), reader.get(&LOG_LEVEL));
    Ok(LogSettings { format: format?, level: level? })
}

impl Error {
    fn one(problem: String) -> Self {
        Self { problems: vec![problem] }
    }
}

#[cfg(test)]
mod tests;
