//! Inputs that clients send as images, as a DnnModel declares them.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Steps from an image to a tensor, in this order: resize, crop, scale to 0..1, subtract the
/// mean, divide by the standard deviation, as torchvision does them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct InputImage {
    /// Size to which it is resized; by default it keeps its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<ImageResize>,
    /// Weights of pixels in resizing, always antialiased. Default: Bilinear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interpolation: Option<Interpolation>,
    /// The part in the middle that is kept; black is added where the image is smaller. Without
    /// it the image must be resized to a width and height.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<ImageArea>,
    /// What is subtracted from red, green and blue in 0..1. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 3))]
    pub mean: Option<Vec<f64>>,
    /// What they are divided by then. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 3))]
    pub std: Option<Vec<f64>>,
    /// What most files are like, for which times are told and placements planned (BYTES only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub typical: Option<ImageTypical>,
    /// What no file may exceed; it is refused before memory is taken for it (BYTES only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<ImageLimits>,
}

/// The size to which an image is resized.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.shorterSide) ? !has(self.width) && !has(self.height) : has(self.width) && has(self.height)", "give shorterSide, or width and height"))]
pub struct ImageResize {
    /// Pixels of the shorter side; the other follows in proportion.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16384))]
    pub shorter_side: Option<u32>,
    /// Pixels in a row, whatever the proportions.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16384))]
    pub width: Option<u32>,
    /// Rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16384))]
    pub height: Option<u32>,
}

/// Weights of pixels in resizing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)] // the names say it all
pub enum Interpolation {
    Bilinear,
    Bicubic,
    Lanczos,
}

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageArea {
    /// Pixels in a row.
    #[schemars(range(min = 1, max = 16384))]
    pub width: u32,
    /// Rows.
    #[schemars(range(min = 1, max = 16384))]
    pub height: u32,
}

/// What most files are like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.width) == has(self.height)", "give width and height, or neither"))]
pub struct ImageTypical {
    /// Pixels in a row. Default: 640.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16384))]
    pub width: Option<u32>,
    /// Rows. Default: 480.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16384))]
    pub height: Option<u32>,
    /// Bytes of a file. Default: a quarter of a byte for each pixel.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 33554432))]
    pub bytes: Option<u64>,
}

/// What no file may exceed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageLimits {
    /// Width times height, for which a host that decodes reserves memory. Default: four million,
    /// or four typical images.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 67108864))]
    pub pixels: Option<u64>,
    /// Bytes of a file. Default: 4 MiB, or four typical files.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 33554432))]
    pub bytes: Option<u64>,
}
