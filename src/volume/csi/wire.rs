//! The messages of CSI's Node service and of the kubelet's plugin registration, as protobuf.
//!
//! In and out: values. Fields and numbers are those of csi.proto (v1) and pluginregistration/v1/api.proto, as far as a node
//! uses them; what a driver says beyond is skipped.

#![allow(clippy::doc_markdown, reason = "the names are the protocol's")]

use std::collections::HashMap;

/// Nothing, of whatever name: `InfoRequest`, `NodeGetInfoRequest`, the answers that carry nothing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Empty {}

/// `pluginregistration.PluginInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginInfo {
    /// `CSIPlugin`, `DevicePlugin`...
    #[prost(string, tag = "1")]
    pub kind: String,
    /// The driver's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The driver's own socket; empty for the one that registers.
    #[prost(string, tag = "3")]
    pub endpoint: String,
    /// Versions of the driver's API.
    #[prost(string, repeated, tag = "4")]
    pub supported_versions: Vec<String>,
}

/// `pluginregistration.RegistrationStatus`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegistrationStatus {
    /// Whether it is registered.
    #[prost(bool, tag = "1")]
    pub plugin_registered: bool,
    /// Why not.
    #[prost(string, tag = "2")]
    pub error: String,
}

/// `NodeGetInfoResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeInfo {
    /// The driver's name of this node.
    #[prost(string, tag = "1")]
    pub node_id: String,
    /// 0 for no limit.
    #[prost(int64, tag = "2")]
    pub max_volumes_per_node: i64,
    /// Where the node is.
    #[prost(message, optional, tag = "3")]
    pub accessible_topology: Option<Topology>,
}

/// `Topology`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Topology {
    /// Keys and values.
    #[prost(map = "string, string", tag = "1")]
    pub segments: HashMap<String, String>,
}

/// `NodeGetCapabilitiesResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Capabilities {
    /// What the driver can.
    #[prost(message, repeated, tag = "1")]
    pub capabilities: Vec<Capability>,
}

/// `NodeServiceCapability`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Capability {
    /// One of its forms, the only one there is.
    #[prost(message, optional, tag = "1")]
    pub rpc: Option<Rpc>,
}

/// `NodeServiceCapability.RPC`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Rpc {
    /// One of [`capability`].
    #[prost(int32, tag = "1")]
    pub kind: i32,
}

/// `NodeServiceCapability.RPC.Type`.
pub mod capability {
    /// Volumes are staged once a node, then published for each pod.
    pub const STAGE_UNSTAGE_VOLUME: i32 = 1;
    /// It tells how full a volume is.
    pub const GET_VOLUME_STATS: i32 = 2;
    /// It makes volumes larger.
    pub const EXPAND_VOLUME: i32 = 3;
    /// It tells modes of one node and several writers apart.
    pub const SINGLE_NODE_MULTI_WRITER: i32 = 5;
    /// It gives the volume to a group itself.
    pub const VOLUME_MOUNT_GROUP: i32 = 6;
}

/// `VolumeCapability`, for a volume of files.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeCapability {
    /// How it is mounted.
    #[prost(message, optional, tag = "2")]
    pub mount: Option<MountVolume>,
    /// Who may use it.
    #[prost(message, optional, tag = "3")]
    pub access_mode: Option<AccessMode>,
}

/// `VolumeCapability.MountVolume`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MountVolume {
    /// Such as `ext4`; empty for the driver's choice.
    #[prost(string, tag = "1")]
    pub fs_type: String,
    /// Options.
    #[prost(string, repeated, tag = "2")]
    pub mount_flags: Vec<String>,
    /// `fsGroup`, for drivers that apply it.
    #[prost(string, tag = "3")]
    pub volume_mount_group: String,
}

/// `VolumeCapability.AccessMode`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AccessMode {
    /// One of [`access_mode`].
    #[prost(int32, tag = "1")]
    pub mode: i32,
}

/// `VolumeCapability.AccessMode.Mode`.
pub mod access_mode {
    /// None that is known.
    pub const UNKNOWN: i32 = 0;
    /// ReadWriteOnce, to drivers that know no finer.
    pub const SINGLE_NODE_WRITER: i32 = 1;
    /// ReadOnlyMany.
    pub const MULTI_NODE_READER_ONLY: i32 = 3;
    /// ReadWriteMany.
    pub const MULTI_NODE_MULTI_WRITER: i32 = 5;
    /// ReadWriteOncePod.
    pub const SINGLE_NODE_SINGLE_WRITER: i32 = 6;
    /// ReadWriteOnce.
    pub const SINGLE_NODE_MULTI_WRITER: i32 = 7;
}

/// `NodeStageVolumeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct StageRequest {
    /// The volume's handle.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// What attaching it gave.
    #[prost(map = "string, string", tag = "2")]
    pub publish_context: HashMap<String, String>,
    /// Where.
    #[prost(string, tag = "3")]
    pub staging_target_path: String,
    /// How.
    #[prost(message, optional, tag = "4")]
    pub volume_capability: Option<VolumeCapability>,
    /// Secrets: never shown.
    #[prost(map = "string, string", tag = "5")]
    pub secrets: HashMap<String, String>,
    /// Attributes of the volume.
    #[prost(map = "string, string", tag = "6")]
    pub volume_context: HashMap<String, String>,
}

impl std::fmt::Debug for StageRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StageRequest").field("volume_id", &self.volume_id).finish_non_exhaustive()
    }
}

/// `NodePublishVolumeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct PublishRequest {
    /// The volume's handle.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// What attaching it gave.
    #[prost(map = "string, string", tag = "2")]
    pub publish_context: HashMap<String, String>,
    /// Where it was staged; empty when it was not.
    #[prost(string, tag = "3")]
    pub staging_target_path: String,
    /// Where.
    #[prost(string, tag = "4")]
    pub target_path: String,
    /// How.
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    /// Whether it is mounted read-only.
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    /// Secrets: never shown.
    #[prost(map = "string, string", tag = "7")]
    pub secrets: HashMap<String, String>,
    /// Attributes of the volume, and of the pod where the driver wants them.
    #[prost(map = "string, string", tag = "8")]
    pub volume_context: HashMap<String, String>,
}

impl std::fmt::Debug for PublishRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PublishRequest").field("volume_id", &self.volume_id).finish_non_exhaustive()
    }
}

/// `CapacityRange`, as far as it is asked for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CapacityRange {
    /// At least so much.
    #[prost(int64, tag = "1")]
    pub required_bytes: i64,
}

/// `NodeExpandVolumeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct ExpandRequest {
    /// The volume's handle.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where it is published.
    #[prost(string, tag = "2")]
    pub volume_path: String,
    /// How large it is to be.
    #[prost(message, optional, tag = "3")]
    pub capacity_range: Option<CapacityRange>,
    /// Where it is staged.
    #[prost(string, tag = "4")]
    pub staging_target_path: String,
    /// How it is mounted.
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    /// Secrets: never shown.
    #[prost(map = "string, string", tag = "6")]
    pub secrets: HashMap<String, String>,
}

impl std::fmt::Debug for ExpandRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExpandRequest").field("volume_id", &self.volume_id).finish_non_exhaustive()
    }
}

/// `NodeUnpublishVolumeRequest`, `NodeUnstageVolumeRequest`: both are a volume and a path, under the same numbers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumePath {
    /// The volume's handle.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where it is.
    #[prost(string, tag = "2")]
    pub path: String,
}

/// `NodeGetVolumeStatsResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeStats {
    /// By unit.
    #[prost(message, repeated, tag = "1")]
    pub usage: Vec<VolumeUsage>,
}

/// `VolumeUsage`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeUsage {
    /// Free.
    #[prost(int64, tag = "1")]
    pub available: i64,
    /// In all.
    #[prost(int64, tag = "2")]
    pub total: i64,
    /// Used.
    #[prost(int64, tag = "3")]
    pub used: i64,
    /// 1 for bytes, 2 for inodes.
    #[prost(int32, tag = "4")]
    pub unit: i32,
}
