// Copyright (c) the swinumamba_monai authors
// SPDX-License-Identifier: Apache-2.0
//
// The selective scan of several groups of channels, each in its own order over the same map, and its backward.
// Symbols as in ops/reference.py; groups g are the four directions of a map, or the groups of a sequence.
//
// For channels with two states and more; scan_one.cu is for those with one. A block owns some channels of one group and
// one sample and walks along the sequence; a thread holds LANE_STATES states of one channel in registers, STATE_LANES =
// 4 threads of a warp hold all of them. How many threads there are is given by the work (batch, groups, channels,
// states), and is what an H100 has too many places for: with four states a thread, the first stage of a network has
// three warps for each scheduler. So what is done per state is done once, and what is done per position is kept short.
// The next limit is how much shared memory can answer; see `Place`.
//
// What does not depend on the state is done once per position and channel, for a tile of positions at a time. The
// numbers of a tile travel from memory to shared memory by themselves (`copy_async`) while the tile before is computed.
// The thread that ordered them takes them from there, without a barrier: it adds the bias, takes the softplus, converts
// to float32, and puts the results where the threads of all states read them. B and C are shared by the block. Which
// pixel a position is costs additions, no division (`Walk`). Positions beyond the end count as Δ = 0, which leaves
// every state as it is.
//
// Sums over states meet in shared memory in the forward (y): each thread leaves its part, and whoever stores the result
// adds them up; in the backward (dΔ, du) they go from thread to thread. Sums over channels (dB, dC) are products of
// small matrices, states × channels times channels × positions, and run on the matrix units; see `Products`. All of
// this has a fixed order.
//
// A long sequence is cut into segments that run at the same time. Their start states come from a first pass that keeps
// nothing but the state each segment would end with if it started from zero, and from `scan_chain_*`, which goes
// through these. Where some multiprocessors would have a block more than the others, the backward cuts off a short
// segment at the end, which only the others take. The backward knows the state at every CHUNK positions, recomputes it
// at every SUBTILE positions, and holds the decays and states of one subtile in registers. Nothing is ever divided by a
// decay.
//
// Defined by the compiling side, besides what common.cuh names: LANE_STATES and STATE_LANES as above; SURPLUS_STATES,
// whether these are more than a channel has; MATRIX_VECTOR, the neighbours in B and C that a thread may load at a time;
// DELTA_SOFTPLUS, whether Δ is softplus of delta; TILE, the positions that a block prepares at a time in the forward;
// STAGES, the tiles that are on their way; CHUNK and SUBTILE;
// UNROLLED, the positions of the forward that the compiler sees at a time; FORWARD_WARPS and BACKWARD_WARPS of a block;
// FORWARD_BLOCKS and BACKWARD_BLOCKS, that a multiprocessor shall have room for; FORWARD_BYTES and BACKWARD_BYTES, the
// shared memory of a block.

#include "scan_places.cuh"
#include "scan_tiles.cuh"
#include "scan_forward.cuh"
#include "scan_products.cuh"
#include "scan_backward.cuh"
