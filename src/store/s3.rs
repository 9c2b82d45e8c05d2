//! S3-compatible storage through aws-sdk-s3.

/// `[storage.s3]`; what is `None` comes from the AWS environment variables and the default chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct S3Settings {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub profile: Option<String>,
    pub allow_http: bool,
    pub path_style: Option<bool>,
    /// `unconditional_writes = "allow"`: rewrite even on a store that ignores conditional writes.
    pub unconditional_writes: bool,
}
