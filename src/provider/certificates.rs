//! Which servers are trusted: those with a certificate that the system trusts, and those that `--ca-cert` names.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};

use crate::{
    error::{Error, Kind, Result},
    text::chain,
};

/// A larger PEM file is a mistake of the user.
const MAX_FILE: u64 = 1 << 20;

/// The certificates of `--ca-cert`.
pub(super) fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    use std::io::Read as _;

    let fail = |why: String| Error::input(format!("--ca-cert {}: {why}", path.display()));
    let mut pem = Vec::new();
    #[expect(clippy::disallowed_methods, reason = "what is read has a bound")]
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut pem))
        .map_err(|e| fail(e.to_string()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|e| fail(chain(&e)))?;
    if certificates.is_empty() {
        return Err(
            fail("there is no certificate in it".to_owned()).fix("it should be PEM: -----BEGIN CERTIFICATE-----")
        );
    }
    Ok(certificates)
}

/// TLS that also trusts the `given` certificates, as roots or as the server's own.
pub(super) fn believing(given: Vec<CertificateDer<'static>>) -> Result<ClientConfig> {
    let fail = |e: rustls::Error| Error::new(Kind::Unavailable, format!("cannot set up TLS: {}", chain(&e)));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let system = rustls_platform_verifier::Verifier::new_with_extra_roots(given.clone(), Arc::clone(&provider));
    let verifier = Arc::new(Verifier { given, system: system.map_err(fail)? });
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(fail)?;
    let mut config = config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Accepts a certificate that is byte for byte one of `given`, before the usual checks. The usual checks would refuse a
/// self-signed one: it is the certificate of a CA, and no server may use such a certificate.
#[derive(Debug)]
struct Verifier {
    given: Vec<CertificateDer<'static>>,
    system: rustls_platform_verifier::Verifier,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.given.iter().any(|given| given.as_ref() == end_entity.as_ref()) {
            return Ok(ServerCertVerified::assertion());
        }
        self.system.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    // The proof that the server holds the certificate's key is checked as always.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.system.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.system.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.system.supported_verify_schemes()
    }
}
