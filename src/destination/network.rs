//! The way to Variance's host as the environment describes it: a proxy, and whom to trust.
//!
//! What cannot be used is an error that names the variable. Never does a variable that is wrong lead to a direct connection,
//! which would carry the credential past the proxy.

use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use http::Uri;
use reqwest::{NoProxy, Proxy};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use rustls_native_certs::{CertificateResult, load_certs_from_paths};
use url::Url;

/// The bundle of trusted authorities, and the directories with such.
const CERT_FILE: &str = "SSL_CERT_FILE";
const CERT_DIR: &str = "SSL_CERT_DIR";

/// A proxy, if one is set, and the settings of TLS.
#[derive(Clone)]
pub struct Network {
    pub(super) proxy: Option<Proxy>,
    pub(super) tls: ClientConfig,
}

/// What is wrong with a variable, or may not do what was meant.
pub type Problem = String;

impl Network {
    /// The network without a proxy, for `url`; with the system's certificates.
    ///
    /// # Errors
    /// When there are no certificates and the URL needs them.
    pub fn direct(url: &Url) -> Result<Self, Problem> {
        Self::new(url.scheme() == "https", None, |_| None)
    }

    /// The network that the variables describe, for `url`, and what in them never has an effect.
    ///
    /// # Errors
    /// Every variable that cannot be used, and that the system has no certificates where they are needed.
    pub fn from_variables(
        url: &Url,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        let mut problems = Vec::new();
        let mut warnings = Vec::new();
        let given = proxy(url, &variable, &mut warnings).unwrap_or_else(|problem| {
            problems.push(problem);
            None
        });
        // TLS is spoken to Variance, or to the proxy.
        let is_tls = url.scheme() == "https" || given.as_ref().is_some_and(|(_, is_tls)| *is_tls);
        match Self::new(is_tls, given.map(|(proxy, _)| proxy), variable) {
            Ok(network) if problems.is_empty() => Ok((network, warnings)),
            Ok(_) => Err(problems),
            Err(problem) => {
                problems.push(problem);
                Err(problems)
            }
        }
    }

    fn new(is_tls: bool, proxy: Option<Proxy>, variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Problem> {
        let authorities = if is_tls { authorities(variable)? } else { RootCertStore::empty() };
        let mut tls = ClientConfig::builder().with_root_certificates(authorities).with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { proxy, tls })
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("proxy", &self.proxy.is_some()).finish_non_exhaustive()
    }
}

/// The proxy for a URL, if one is set, and whether TLS is spoken to it.
fn proxy(
    url: &Url,
    variable: &impl Fn(&str) -> Option<OsString>,
    warnings: &mut Vec<Problem>,
) -> Result<Option<(Proxy, bool)>, Problem> {
    let specific = if url.scheme() == "https" { ["HTTPS_PROXY", "https_proxy"] } else { ["HTTP_PROXY", "http_proxy"] };
    let (specific, general) = (first(specific, variable)?, first(["ALL_PROXY", "all_proxy"], variable)?);
    let Some((name, value)) = specific.or(general) else { return Ok(None) };
    check_proxy(name, &value)?;
    let (except_name, except) = first(["NO_PROXY", "no_proxy"], variable)?.unwrap_or_default();
    for entry in except.split(',').map(str::trim).filter(|entry| never_matches(entry)) {
        warnings.push(format!(
            "{except_name}: the entry \"{entry}\" never matches: an entry is a host, a domain (.example.com), an address or \
             a network (10.0.0.0/8), without a port"
        ));
    }
    let is_tls = value.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("https://"));
    let proxy = Proxy::all(value).map_err(|_| format!("{name} is no URL of a proxy"))?;
    Ok(Some((proxy.no_proxy(NoProxy::from_string(&except)), is_tls)))
}

/// The first of two spellings that is set. An empty one that hides the other is an error.
fn first(
    names: [&'static str; 2],
    variable: &impl Fn(&str) -> Option<OsString>,
) -> Result<Option<(&'static str, String)>, Problem> {
    let [upper, lower] = names.map(variable);
    let text = |name, value: OsString| match value.into_string() {
        Ok(value) => Ok(Some((name, value))),
        Err(_) => Err(format!("{name} is not UTF-8")),
    };
    match (upper, lower.filter(|lower| !lower.is_empty())) {
        (Some(upper), Some(_)) if upper.is_empty() => {
            Err(format!("{} is empty and hides {}: unset the one that is not meant", names[0], names[1]))
        }
        (Some(upper), _) if !upper.is_empty() => text(names[0], upper),
        (_, Some(lower)) => text(names[1], lower),
        (_, None) => Ok(None),
    }
}

/// Says what keeps a value from being a proxy's URL. The value itself may hold a password, and is not shown.
fn check_proxy(name: &str, value: &str) -> Result<(), Problem> {
    const RIGHT: &str = "a proxy is given as http://host:port";
    let wrong = |what: &str| Err(format!("{name} {what}: {RIGHT}"));
    if value.contains(['"', '\'']) {
        return wrong("has quotes in it");
    }
    if value.contains(char::is_whitespace) {
        return wrong("has white space in it");
    }
    match value.split_once("://") {
        Some((scheme, _)) if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") => {
            return Err(format!("{name}: proxies of the kind {scheme}:// are not supported: {RIGHT}"));
        }
        _ => {}
    }
    let uri = value.parse::<Uri>().ok();
    if uri.as_ref().and_then(Uri::host).is_none_or(str::is_empty) {
        return wrong("is no URL with a host");
    }
    Ok(())
}

/// True for an entry of `NO_PROXY` that is neither a host nor a network.
fn never_matches(entry: &str) -> bool {
    let is_address = entry.split('/').next().is_some_and(|start| start.parse::<std::net::IpAddr>().is_ok());
    let is_name = |name: &str| name.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'));
    !(entry.is_empty() || entry == "*" || is_address || is_name(entry))
}

/// Those whose signature makes a certificate trusted.
fn authorities(variable: impl Fn(&str) -> Option<OsString>) -> Result<RootCertStore, Problem> {
    let given = |name| variable(name).filter(|value| !value.is_empty());
    let (file, dirs) = (given(CERT_FILE), given(CERT_DIR));
    let mut store = RootCertStore::empty();
    if file.is_none() && dirs.is_none() {
        let probed = openssl_probe::probe();
        add(&mut store, load(probed.cert_file.as_deref(), &probed.cert_dir));
        return if store.is_empty() {
            Err(format!("this system has no root certificates: install some, or name a bundle in {CERT_FILE}"))
        } else {
            Ok(store)
        };
    }
    if let Some(file) = file {
        let file = PathBuf::from(file);
        let CertificateResult { certs, errors, .. } = load_certs_from_paths(Some(&file), None);
        if let Some(error) = errors.first() {
            return Err(format!("{CERT_FILE}: {error}"));
        }
        if add(&mut store, certs) == 0 {
            return Err(format!("{CERT_FILE}: there is no certificate in {}", file.display()));
        }
    }
    if let Some(dirs) = dirs {
        let dirs: Vec<_> = env::split_paths(&dirs).filter(|dir| !dir.as_os_str().is_empty()).collect();
        if let Some(missing) = dirs.iter().find(|dir| !dir.is_dir()) {
            return Err(format!("{CERT_DIR}: there is no directory {}", missing.display()));
        }
        if add(&mut store, load(None, &dirs)) == 0 {
            return Err(format!("{CERT_DIR}: there is no certificate in it"));
        }
    }
    Ok(store)
}

fn load(file: Option<&Path>, dirs: &[PathBuf]) -> Vec<CertificateDer<'static>> {
    // What is not a certificate is passed over: directories hold other files too.
    let each = dirs.iter().map(|dir| load_certs_from_paths(None, Some(dir)));
    file.map(|file| load_certs_from_paths(Some(file), None))
        .into_iter()
        .chain(each)
        .flat_map(|found| found.certs)
        .collect()
}

/// Returns how many were added.
fn add(store: &mut RootCertStore, certificates: Vec<CertificateDer<'static>>) -> usize {
    store.add_parsable_certificates(certificates).0
}
