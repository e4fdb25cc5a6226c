//! Any configuration is accepted or rejected without a panic and without showing a secret; an accepted one can be used.
//!
//! The input is lines of `VARIABLE=value` up to an empty line, and then the configuration file.

#![no_main]

use std::{
    ffi::OsString,
    fs,
    path::PathBuf,
    sync::LazyLock,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderValue, Uri, header::AUTHORIZATION};
use libfuzzer_sys::fuzz_target;
use tracing_subscriber::EnvFilter;
use variance_connector::{
    auth::{Auth, Proof},
    config::{self, Config, Flags, KEYS, Loaded},
    destination::DestinationSettings,
    mapping, outbox, server, service, variance,
};

/// A text in front of every secret of the environment.
const SECRET: &str = "S3CRET";

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("variance-connector-fuzz-{}.toml", std::process::id())));

fuzz_target!(|text: &str| {
    let (variables, file) = text.split_once("\n\n").unwrap_or((text, ""));
    fs::write(&*FILE, file).expect("there is room for it");
    let flags = Flags { config: Some(FILE.clone()), ..Flags::default() };
    let variables = variables.lines().filter_map(variable).collect();
    let loaded = config::load(&flags, &variables);
    let said = match &loaded {
        Ok(loaded) => format!("{loaded:?}"),
        Err(error) => {
            assert!(!error.problems.is_empty());
            error.to_string()
        }
    };
    assert!(text.contains(SECRET) || !said.contains(SECRET), "{said}");

    let mapping = config::mapping_alone(&flags, &variables);
    let forwarding = config::forwarding(&flags, &variables, false);
    let listen = config::listen(&flags, &variables);
    if let Ok(Loaded { config: Config { service, log }, settings, warnings: _ }) = loaded {
        let of_the_service = KEYS.iter().filter(|key| !key.name.starts_with("posthog."));
        assert_eq!(settings.len(), of_the_service.count());
        assert!(mapping.is_ok() && forwarding.is_ok() && listen.is_ok());
        assert!(EnvFilter::try_new(log.level.to_string()).is_ok(), "{:?}", log.level);
        let anonymous = settings.iter().find(|setting| setting.key.name == "server.allow_anonymous");
        is_usable(service, anonymous.and_then(|setting| setting.value.as_deref()) == Some("true"));
    }
});

fn variable(line: &str) -> Option<(OsString, OsString)> {
    let (name, value) = line.split_once('=')?;
    // Files that others might write, or that have no end, are not tested here.
    let is_file = name.ends_with("_FILE") || name == config::FILE_VARIABLE;
    let secret = match name {
        "VARIANCE_AUTHORIZATION" | "CONNECTOR_TOKEN" => SECRET.to_owned(),
        "CONNECTOR_SIGNING_SECRET" => format!("whsec_{SECRET}"),
        _ => String::new(),
    };
    (!is_file).then(|| (name.into(), (secret + value).into()))
}

fn is_usable(settings: service::ServiceSettings, allows_anonymous: bool) {
    let service::ServiceSettings { server, auth, mapping, destination, outbox } = settings;

    let server::ServerSettings { listen, webhook_deadline, batch_deadline, max_body, shutdown_grace, head_timeout } =
        server;
    let has_credential = !auth.tokens.is_empty() || !auth.signing_secrets.is_empty();
    let outbox::OutboxSettings { concurrency, retry_for, abandon: _, max_held, pacing: _ } = outbox;
    let timeouts = [head_timeout, destination.attempt_timeout];
    for duration in [webhook_deadline, batch_deadline, shutdown_grace, retry_for].into_iter().chain(timeouts) {
        assert!(!duration.is_zero());
        assert!(Instant::now().checked_add(duration).is_some() && SystemTime::now().checked_add(duration).is_some());
        assert!(duration.checked_mul(2).is_some());
    }
    assert!(has_credential || allows_anonymous || listen.ip().to_canonical().is_loopback());
    assert!(max_body > 0 && max_body.checked_mul(4).is_some());
    assert!((1..=10_000).contains(&concurrency) && max_held >= 16 << 20 && max_held.checked_mul(4).is_some());

    let DestinationSettings { webhook_url, authorization, attempt_timeout: _, .. } = destination;
    let uri: Uri = webhook_url.as_str().parse().expect("a client can ask for it");
    assert!(uri.host().is_some_and(|host| !host.is_empty()) && webhook_url.username().is_empty());
    assert!(matches!(webhook_url.scheme(), "http" | "https") && webhook_url.password().is_none());
    assert!(authorization.value.is_sensitive() && !authorization.value.is_empty());

    let mapping::MappingSettings { calls, exclude, include, keep_properties, account_group, .. } = mapping;
    assert!(!calls.is_empty() && account_group.is_none_or(|account| !account.is_empty()));
    assert!(include.is_empty() || calls.contains(&variance::Call::Capture));
    assert!(include.iter().all(|name| !name.is_internal() && !exclude.iter().any(|pattern| pattern.covers(name))));
    assert!(keep_properties.iter().all(mapping::NamePattern::is_internal));

    let auth = Auth::new(auth);
    let mut wrong = HeaderMap::new();
    wrong.insert(AUTHORIZATION, HeaderValue::from_static("Bearer wrong"));
    let proof = auth.judge_head(&wrong, SystemTime::UNIX_EPOCH + Duration::from_secs(1), false);
    assert_eq!(proof == Ok(Proof::Proven), !has_credential);
}
