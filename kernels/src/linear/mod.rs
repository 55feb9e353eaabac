//! `y = x W^T` for `m` rows.
//!
//! Every output is one fixed sum (ARITHMETIC.md, 1 and 2). What may differ, and does not touch a bit: how many rows and panels are
//! computed together, in which order, on which thread, with which instructions.
//!
//! * [`product`] which rows and panels are computed together · [`tile`] some of both · [`activations`] rows for quantised weights
//! * [`dense`], [`blocks`] the sums of a tile, over [`crate::lanes`] · [`formats`], [`super_blocks`] what is particular to each packing of quantised weights
//! * [`sums`] the integer sums of a block
//! * [`tiles`] these compiled for every instruction set · [`many`] the sums of many rows, as in training
//! * [`transposed`] the same with the weights the other way round · [`reference`] all of it in plain loops, from the bytes of a file

mod activations;
mod blocks;
mod dense;
mod formats;
mod many;
mod product;
pub mod reference;
mod sums;
mod super_blocks;
mod tile;
mod tiles;
mod transposed;

pub use product::{linear, linear_add, linear_many};
pub(crate) use tile::CHUNK;
pub use transposed::linear_transposed;
