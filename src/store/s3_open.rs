//! How S3 is reached: endpoint, region, credentials and patience, from the job file, the environment and the AWS profile.

use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::meta::region::ProvideRegion;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig, imds};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::SharedHttpClient;
use aws_smithy_http_client::{Builder as HttpBuilder, tls};

use crate::error::{Error, Exit};
use crate::store::s3::S3Settings;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From a request to the head of its reply, the sending of one part included; a body that stalls is noticed by the SDK.
const REPLY_TIMEOUT: Duration = Duration::from_secs(120);
/// Outside AWS nothing answers at the metadata service's address; a run must not wait for it.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(20);

const CREDENTIALS_HINT: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or [storage.s3] profile, or run with an instance or container role; \
     for a single sign-on profile: eval \"$(aws configure export-credentials --format env)\"";

/// Credentials that are not given come from the default chain.
pub(super) async fn client(settings: &S3Settings, given: Option<Credentials>) -> Result<Client, Error> {
    let https =
        HttpBuilder::new().tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring)).build_https();
    let named = settings.endpoint.clone().or_else(endpoint_of_environment);
    let region = region(settings, named.is_some(), &https).await?;
    let credentials = match given {
        Some(given) => SharedCredentialsProvider::new(given),
        None => credentials(settings, &https, region.clone()).await?,
    };
    let shared = shared_config(settings, region, credentials, https).await;
    let from_environment = aws_sdk_s3::Config::from(&shared);
    let endpoint = named.or_else(|| shared.endpoint_url().filter(|profile| !profile.is_empty()).map(str::to_owned));
    let mut config = from_environment.to_builder();
    if let Some(endpoint) = &endpoint {
        check_endpoint(endpoint, settings)?;
        config = config.endpoint_url(endpoint);
        if endpoint.starts_with("http://") {
            // Without TLS no certificates are loaded, which a bare machine may not have.
            config = config.http_client(HttpBuilder::new().build_http());
        }
    }
    let path_style = settings.path_style.unwrap_or(endpoint.is_some());
    Ok(Client::from_conf(config.force_path_style(path_style).build()))
}

async fn shared_config(
    settings: &S3Settings,
    region: Region,
    credentials: SharedCredentialsProvider,
    https: SharedHttpClient,
) -> SdkConfig {
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(REPLY_TIMEOUT).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(https)
        .region(region)
        .credentials_provider(credentials)
        // See `s3_call`: our own retries tell a lost reply from a conflict.
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts);
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    loader.load().await
}

/// What the environment says; `AWS_ENDPOINT_URL_S3` comes first, as in every AWS tool.
fn endpoint_of_environment() -> Option<String> {
    let variables = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].iter().filter_map(|name| std::env::var(name).ok());
    variables.into_iter().find(|endpoint| !endpoint.is_empty())
}

fn check_endpoint(endpoint: &str, settings: &S3Settings) -> Result<(), Error> {
    let secure = endpoint.starts_with("https://");
    if !secure && !endpoint.starts_with("http://") {
        return Err(Error::usage(format!("the S3 endpoint {endpoint} is no http:// or https:// URL")));
    }
    // An endpoint of the environment is its owner's word, as for every AWS tool; the job file has to say it twice.
    if !secure && settings.endpoint.is_some() && !settings.allow_http {
        return Err(Error::usage(format!("the S3 endpoint {endpoint} is plain http"))
            .hint("set [storage.s3] allow_http = true to permit it"));
    }
    Ok(())
}

async fn region(settings: &S3Settings, has_endpoint: bool, https: &SharedHttpClient) -> Result<Region, Error> {
    if let Some(region) = &settings.region {
        return Ok(Region::new(region.clone()));
    }
    let provider = ProviderConfig::without_region().with_http_client(https.clone());
    let mut profile = ProfileFileRegionProvider::builder().configure(&provider);
    if let Some(name) = &settings.profile {
        profile = profile.profile_name(name);
    }
    let known = match EnvironmentVariableRegionProvider::new().region().await {
        Some(region) => Some(region),
        None => profile.build().region().await,
    };
    match known {
        Some(region) => Ok(region),
        // Servers other than AWS's seldom care.
        None if has_endpoint => Ok(Region::from_static("us-east-1")),
        None => {
            let instance = ImdsRegionProvider::builder().configure(&provider).build();
            let asked = tokio::time::timeout(METADATA_TIMEOUT * 2, instance.region()).await;
            asked
                .ok()
                .flatten()
                .ok_or_else(|| Error::usage("no AWS region is set").hint("set AWS_REGION or [storage.s3] region"))
        }
    }
}

/// The default chain, asked once now: a run without credentials is to stop here and not at its first object.
async fn credentials(
    settings: &S3Settings,
    https: &SharedHttpClient,
    region: Region,
) -> Result<SharedCredentialsProvider, Error> {
    let provider = ProviderConfig::without_region().with_http_client(https.clone()).with_region(Some(region.clone()));
    let metadata = imds::Client::builder()
        .configure(&provider)
        .max_attempts(1)
        .connect_timeout(METADATA_TIMEOUT)
        .read_timeout(METADATA_TIMEOUT)
        .build();
    let mut chain = DefaultCredentialsChain::builder().configure(provider).region(region).imds_client(metadata);
    if let Some(profile) = &settings.profile {
        chain = chain.profile_name(profile);
    }
    let chain = chain.build().await;
    let asked = tokio::time::timeout(CREDENTIALS_TIMEOUT, chain.provide_credentials()).await;
    let reason = match asked {
        Ok(Ok(_)) => return Ok(SharedCredentialsProvider::new(chain)),
        Ok(Err(CredentialsError::InvalidConfiguration(_))) => "the AWS profile cannot be used",
        Err(_) | Ok(Err(CredentialsError::ProviderTimedOut(_))) => "the source of the AWS credentials did not answer",
        // That the metadata service is not there counts as a failure of its own to the SDK: on most machines it just is not.
        Ok(Err(_)) => "no AWS credentials could be obtained",
    };
    // The same code as for credentials that the store turns down.
    Err(Error::new(Exit::Blocked, reason).hint(CREDENTIALS_HINT))
}
