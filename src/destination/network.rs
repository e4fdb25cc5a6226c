//! The way to Variance's host as the environment describes it: the proxy, and the trusted authorities.
//!
//! A variable that cannot be used is an error that names the variable. It never leads to a direct connection, which would carry
//! the credential past the proxy.

use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::Uri;
use reqwest::{ClientBuilder, NoProxy, Proxy};
use rustls::{
    ClientConfig, RootCertStore, SignatureScheme, client::ResolvesClientCert, pki_types::CertificateDer,
    sign::CertifiedKey,
};
use rustls_native_certs::{CertificateResult, load_certs_from_paths};
use url::Url;

/// The variables that name the bundle of trusted authorities, and the directories with their certificates.
const CERT_FILE: &str = "SSL_CERT_FILE";
const CERT_DIR: &str = "SSL_CERT_DIR";

/// A proxy, if one is set, and the settings of TLS.
#[derive(Clone)]
pub struct Network {
    proxy: Option<Proxy>,
    tls: ClientConfig,
    no_certificate: Arc<NoCertificate>,
}

impl Network {
    /// Returns the network for `url` without a proxy, and with the system's certificates.
    ///
    /// # Errors
    /// When the URL needs certificates and there are none.
    pub fn direct(url: &Url) -> Result<Self, String> {
        Self::new(url.scheme() == "https", None, |_| None)
    }

    /// Returns the network for `url` that the variables describe, and warnings of entries that never have an effect.
    ///
    /// # Errors
    /// When a variable cannot be used, or certificates are needed and there are none. All such problems are returned.
    pub fn from_variables(
        url: &Url,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<(Self, Vec<String>), Vec<String>> {
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

    fn new(is_tls: bool, proxy: Option<Proxy>, variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        let authorities = if is_tls { authorities(variable)? } else { RootCertStore::empty() };
        let no_certificate = Arc::new(NoCertificate::default());
        let tls = ClientConfig::builder().with_root_certificates(authorities);
        let mut tls = tls.with_client_cert_resolver(Arc::clone(&no_certificate) as Arc<dyn ResolvesClientCert>);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { proxy, tls, no_certificate })
    }

    /// Returns a client that uses this network, whatever the environment says.
    pub fn client(&self, client: ClientBuilder) -> ClientBuilder {
        let client = client.tls_backend_preconfigured(self.tls.clone()).no_proxy();
        match &self.proxy {
            Some(proxy) => client.proxy(proxy.clone()),
            None => client,
        }
    }

    /// True if a server has asked for a client certificate.
    pub(super) fn was_asked_for_certificate(&self) -> bool {
        self.no_certificate.was_asked_for.load(Ordering::Relaxed)
    }
}

/// A note of whether a server asked for a client certificate. Since there is none, many servers only say that the handshake
/// failed.
#[derive(Debug, Default)]
struct NoCertificate {
    was_asked_for: AtomicBool,
}

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.was_asked_for.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("proxy", &self.proxy.is_some()).finish_non_exhaustive()
    }
}

/// Returns the proxy for a URL, if one is set, and true if the proxy speaks TLS.
fn proxy(
    url: &Url,
    variable: &impl Fn(&str) -> Option<OsString>,
    warnings: &mut Vec<String>,
) -> Result<Option<(Proxy, bool)>, String> {
    let specific = if url.scheme() == "https" { ["HTTPS_PROXY", "https_proxy"] } else { ["HTTP_PROXY", "http_proxy"] };
    let (specific, general) = (first(specific, variable)?, first(["ALL_PROXY", "all_proxy"], variable)?);
    let Some((name, value)) = specific.or(general) else { return Ok(None) };
    check_proxy(name, &value)?;
    let (except_name, except) = first(["NO_PROXY", "no_proxy"], variable)?.unwrap_or_default();
    for entry in except.split(',').map(str::trim).filter(|entry| never_matches(entry)) {
        warnings.push(format!(
            "{except_name}: the entry \"{entry}\" never matches: an entry must be a host, a domain (.example.com), an address \
             or a network (10.0.0.0/8), without a port"
        ));
    }
    let is_tls = value.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("https://"));
    let proxy = Proxy::all(value).map_err(|_| format!("{name} is not the URL of a proxy"))?;
    Ok(Some((proxy.no_proxy(NoProxy::from_string(&except)), is_tls)))
}

/// Returns the first of two spellings that is set. An empty one that hides the other is an error.
fn first(
    names: [&'static str; 2],
    variable: &impl Fn(&str) -> Option<OsString>,
) -> Result<Option<(&'static str, String)>, String> {
    let [upper, lower] = names.map(variable);
    let text = |name, value: OsString| match value.into_string() {
        Ok(value) => Ok(Some((name, value))),
        Err(_) => Err(format!("{name} is not UTF-8")),
    };
    match (upper, lower.filter(|lower| !lower.is_empty())) {
        (Some(upper), Some(_)) if upper.is_empty() => {
            Err(format!("{} is empty and hides {}: unset one of them", names[0], names[1]))
        }
        (Some(upper), _) if !upper.is_empty() => text(names[0], upper),
        (_, Some(lower)) => text(names[1], lower),
        (_, None) => Ok(None),
    }
}

/// Returns an error if a value is not a proxy's URL. The value may have a password, and is not shown.
fn check_proxy(name: &str, value: &str) -> Result<(), String> {
    const RIGHT: &str = "write it as http://host:port or https://host:port";
    let wrong = |what: &str| Err(format!("{name} {what}: {RIGHT}"));
    if value.contains(['"', '\'']) {
        return wrong("has quotes in it");
    }
    if value.contains(char::is_whitespace) {
        return wrong("has white space in it");
    }
    match value.split_once("://") {
        Some((scheme, _)) if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") => {
            return Err(format!("{name} is a proxy of the kind {scheme}://, which is not supported: {RIGHT}"));
        }
        _ => {}
    }
    let uri = value.parse::<Uri>().ok();
    if uri.as_ref().and_then(Uri::host).is_none_or(str::is_empty) {
        return wrong("is not a URL with a host");
    }
    Ok(())
}

/// True for an entry of `NO_PROXY` that is neither a host nor a network.
fn never_matches(entry: &str) -> bool {
    let is_address = entry.split('/').next().is_some_and(|start| start.parse::<std::net::IpAddr>().is_ok());
    let is_name = |name: &str| name.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'));
    !(entry.is_empty() || entry == "*" || is_address || is_name(entry))
}

/// Returns the authorities whose signature makes a certificate trusted.
fn authorities(variable: impl Fn(&str) -> Option<OsString>) -> Result<RootCertStore, String> {
    let given = |name| variable(name).filter(|value| !value.is_empty());
    let (file, dirs) = (given(CERT_FILE), given(CERT_DIR));
    let mut store = RootCertStore::empty();
    if file.is_none() && dirs.is_none() {
        let probed = openssl_probe::probe();
        add(&mut store, load(probed.cert_file.as_deref(), &probed.cert_dir));
        return if store.is_empty() {
            Err(format!(
                "this system has no root certificates: install them (ca-certificates), or name a bundle in {CERT_FILE}"
            ))
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
            return Err(format!("{CERT_FILE}: there is no certificate in the file {}", file.display()));
        }
    }
    if let Some(all) = dirs {
        let dirs: Vec<_> = env::split_paths(&all).filter(|dir| !dir.as_os_str().is_empty()).collect();
        if let Some(missing) = dirs.iter().find(|dir| !dir.is_dir()) {
            return Err(format!("{CERT_DIR}: there is no directory {}", missing.display()));
        }
        if add(&mut store, load(None, &dirs)) == 0 {
            return Err(format!("{CERT_DIR}: there is no certificate in {}", Path::new(&all).display()));
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

/// Adds certificates, and returns the number that could be used.
fn add(store: &mut RootCertStore, certificates: Vec<CertificateDer<'static>>) -> usize {
    store.add_parsable_certificates(certificates).0
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "http://proxy.example:3128";

    fn network(url: &str, variables: &[(&str, &str)]) -> Result<(Network, Vec<String>), Vec<String>> {
        // Another test may have been faster.
        drop(rustls::crypto::ring::default_provider().install_default());
        Network::from_variables(&url.parse().unwrap(), |name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn a_proxy_comes_from_the_first_variable_that_is_set_for_the_url() {
        for (variables, has_proxy) in [
            (&[][..], false),
            (&[("HTTP_PROXY", PROXY)], true),
            (&[("http_proxy", PROXY)], true),
            (&[("ALL_PROXY", "proxy.example:3128")], true),
            (&[("all_proxy", "HTTP://user:pass@proxy.example")], true),
            (&[("HTTP_PROXY", "")], false),
            (&[("HTTP_PROXY", ""), ("http_proxy", "")], false),
            // For another scheme, whatever it is.
            (&[("HTTPS_PROXY", "socks5://proxy.example")], false),
        ] {
            let (network, warnings) = network("http://variance.example/hook", variables).unwrap();
            assert_eq!(network.proxy.is_some(), has_proxy, "{variables:?}");
            assert!(warnings.is_empty(), "{warnings:?}");
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_an_error_that_names_the_variable_and_not_its_value() {
        for (name, value) in [
            ("HTTP_PROXY", "\"http://secret.example:3128\""),
            ("http_proxy", "'http://secret.example:3128'"),
            ("HTTP_PROXY", " http://secret.example:3128"),
            ("HTTP_PROXY", "http://secret.example:3128 "),
            ("ALL_PROXY", "http://secret .example"),
            ("all_proxy", "socks://secret.example"),
            ("ALL_PROXY", "socks5://secret.example:1080"),
            ("ALL_PROXY", "socks5h://secret.example:1080"),
            ("ALL_PROXY", "ftp://secret.example"),
            ("HTTP_PROXY", "http://"),
            ("HTTP_PROXY", "/secret"),
            ("HTTP_PROXY", "http://secret.example:port"),
        ] {
            let problems = network("http://variance.example/hook", &[(name, value)]).unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].starts_with(name) && !problems[0].contains("secret"), "{problems:?}");
        }
        for names in [["HTTP_PROXY", "http_proxy"], ["ALL_PROXY", "all_proxy"], ["NO_PROXY", "no_proxy"]] {
            let variables = [("HTTP_PROXY", PROXY), (names[0], ""), (names[1], PROXY)];
            let variables = if names[0] == "HTTP_PROXY" { &variables[1..] } else { &variables[..] };
            let problems = network("http://variance.example/hook", variables).unwrap_err();
            assert!(problems[0].starts_with(&format!("{} is empty and hides {}", names[0], names[1])), "{problems:?}");
        }
    }

    #[test]
    fn an_exception_that_never_matches_is_warned_of_where_a_proxy_is_set() {
        let except = "variance.example:443, *.example, http://x.example, .example, x.example, *, 10.0.0.0/8, ::1, ,a_b";
        let (_, warnings) = network("http://v.example/", &[("NO_PROXY", except)]).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        let (_, warnings) = network("http://v.example/", &[("HTTP_PROXY", PROXY), ("NO_PROXY", except)]).unwrap();
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        for (warning, entry) in warnings.iter().zip(["variance.example:443", "*.example", "http://x.example"]) {
            assert!(warning.starts_with(&format!("NO_PROXY: the entry \"{entry}\" never matches")), "{warning}");
        }
    }

    #[test]
    fn certificates_that_cannot_be_had_are_an_error_that_names_the_variable_where_tls_is_spoken() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("empty"), "").unwrap();
        std::fs::write(path("other"), "no certificate").unwrap();
        std::fs::create_dir(path("none")).unwrap();
        let authority = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fixtures/tls/authority.pem");
        let some = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fixtures/tls");
        let wrong = [
            ("SSL_CERT_FILE", path("missing")),
            ("SSL_CERT_FILE", path("empty")),
            ("SSL_CERT_FILE", path("other")),
            ("SSL_CERT_FILE", path("none")),
            ("SSL_CERT_DIR", path("missing")),
            ("SSL_CERT_DIR", path("none")),
            ("SSL_CERT_DIR", format!("{some}:{}", path("missing"))),
        ];
        for (name, value) in wrong {
            let variables = [(name, value.as_str())];
            let problems = network("https://variance.example/", &variables).unwrap_err();
            assert!(problems.len() == 1 && problems[0].starts_with(name), "{value}: {problems:?}");
            assert!(network("http://variance.example/", &variables).is_ok(), "{name} does not matter");
            let proxied = [variables[0], ("HTTP_PROXY", "https://proxy.example")];
            assert!(network("http://variance.example/", &proxied).is_err(), "TLS is spoken to the proxy");
        }
        for right in [
            &[("SSL_CERT_FILE", authority)][..],
            &[("SSL_CERT_DIR", some)],
            &[("SSL_CERT_FILE", authority), ("SSL_CERT_DIR", some)],
            &[("SSL_CERT_FILE", authority), ("SSL_CERT_DIR", "")],
            &[("SSL_CERT_FILE", ""), ("SSL_CERT_DIR", some)],
        ] {
            assert!(network("https://variance.example/", right).is_ok(), "{right:?}");
        }
    }
}
