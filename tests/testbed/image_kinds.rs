//! The kinds of image a registry may hold, and the media types each consists of.

/// A kind of image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// An OCI image manifest.
    Oci,
    /// A Docker image manifest, version 2, schema 2.
    Docker,
    /// An OCI index of two OCI images.
    OciIndex,
    /// A Docker manifest list of two Docker images.
    DockerList,
    /// An OCI index of an OCI index of two images, and of an OCI image.
    NestedIndex,
}

/// The media types of a single image.
pub(super) struct MediaTypes {
    pub manifest: &'static str,
    pub config: &'static str,
    pub layer: &'static str,
}

const OCI: MediaTypes = MediaTypes {
    manifest: "application/vnd.oci.image.manifest.v1+json",
    config: "application/vnd.oci.image.config.v1+json",
    layer: "application/vnd.oci.image.layer.v1.tar+gzip",
};
const DOCKER: MediaTypes = MediaTypes {
    manifest: "application/vnd.docker.distribution.manifest.v2+json",
    config: "application/vnd.docker.container.image.v1+json",
    layer: "application/vnd.docker.image.rootfs.diff.tar.gzip",
};

impl ImageKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Oci,
        Self::Docker,
        Self::OciIndex,
        Self::DockerList,
        Self::NestedIndex,
    ];

    /// The media type of the topmost manifest.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Oci => OCI.manifest,
            Self::Docker => DOCKER.manifest,
            Self::OciIndex | Self::NestedIndex => "application/vnd.oci.image.index.v1+json",
            Self::DockerList => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    /// The media types of its single images.
    pub(super) fn single(self) -> MediaTypes {
        match self {
            Self::Oci | Self::OciIndex | Self::NestedIndex => OCI,
            Self::Docker | Self::DockerList => DOCKER,
        }
    }

    /// The kinds of the manifests an index or list is made of; empty for a single image.
    pub(super) fn children(self) -> &'static [Self] {
        match self {
            Self::Oci | Self::Docker => &[],
            Self::OciIndex => &[Self::Oci, Self::Oci],
            Self::DockerList => &[Self::Docker, Self::Docker],
            Self::NestedIndex => &[Self::OciIndex, Self::Oci],
        }
    }
}
