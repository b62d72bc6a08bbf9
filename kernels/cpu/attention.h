// A pass's attention: sequences with one query over pages, others in blocks over packed keys.
#pragma once

#include <vector>

#include "decode_plan.h"
#include "prefill_attention.h"
#include "workspace.h"

namespace tokenbus {

// Packed keys and values that exist at once; more spans wait for the next wave.
constexpr size_t kWaveBytes = size_t(64) << 20;

// What one pass attends to, in layers of one shape.
template <class Kind>
class AttentionPlan {
   public:
    using T = typename Kind::Value;

    AttentionPlan(const Batch& batch, const AttentionShape& shape)
        : batch_(batch), shape_(shape), decode_(batch, shape) {
        size_t used = 0;
        for (int seq = 0; seq < batch.num_seqs; seq++) {
            int num_queries = batch.query_len(seq), context_len = batch.context_lens[seq];
            if (num_queries <= 1) continue;
            int first = first_visible(shape, context_len - num_queries) / kHeadPanel * kHeadPanel;
            PrefillSpan span{seq, batch.query_starts[seq], num_queries, context_len, first, 0};
            size_t size = packed_size<Kind>(span, shape) * shape.num_kv_heads;
            if (waves_.empty() || (used + size) * sizeof(T) > kWaveBytes) {
                waves_.push_back({});
                used = 0;
            }
            span.packed = used;
            used += size;
            packed_ = std::max(packed_, used);
            waves_.back().push_back(span);
        }
    }

    // Calls of Member::share that one layer needs.
    size_t num_phases() const { return decltype(decode_)::kNumPhases + 2 * waves_.size(); }

    void cut(Cutter& cutter, int num_threads) {
        const int group = shape_.num_heads / shape_.num_kv_heads;
        const size_t rows = std::max(kBlockRows, group);
        packed_at_ = cutter.take<T>(packed_);
        singles_.resize(num_threads);
        decode_.cut(cutter, singles_);
        if (waves_.empty()) return;
        blocks_.resize(num_threads);
        for (auto& own : blocks_) {
            own.queries = cutter.take<T>(rows * key_depth<Kind>(shape_));
            own.weights = cutter.take<T>(rows * kBlockKeys);
            own.scores = cutter.take<float>(rows * kBlockKeys);
            own.sums = cutter.take<float>(rows * value_panels(shape_) * kHeadPanel);
            own.tile = cutter.take<float>(size_t(kTileRows<kHeadVectors>) * kHeadPanel);
            own.most = cutter.take<float>(rows);
            own.total = cutter.take<float>(rows);
        }
    }

    // Attend; all keys and values of the pass are in their pages, and all members have seen that.
    void run(Member& member, const AttentionTensors<T>& tensors) {
        for (const auto& wave : waves_) {
            const int heads = shape_.num_kv_heads;
            member.share(int(wave.size()) * heads, 1, [&](int idx) {
                const PrefillSpan& span = wave[idx / heads];
                pack_head<Kind>(span, tensors.keys, tensors.values, table(span.seq), idx % heads,
                                packed_head(span, idx % heads));
            });
            member.wait();
            attend_wave(member, wave, tensors);
            member.wait();
        }
        decode_.run(member, tensors, singles_);
    }

   private:
    const int32_t* table(int seq) const {
        return batch_.block_table + size_t(seq) * batch_.table_stride;
    }

    T* packed_head(const PrefillSpan& span, int kv_head) const {
        return packed_at_ + span.packed + kv_head * packed_size<Kind>(span, shape_);
    }

    void attend_wave(Member& member, const std::vector<PrefillSpan>& wave,
                     const AttentionTensors<T>& tensors) {
        const int heads = shape_.num_kv_heads, group = shape_.num_heads / heads;
        const int queries = std::max(1, kBlockRows / group);
        const size_t width = size_t(shape_.num_heads) * shape_.head_dim;
        int num_blocks = 0;
        for (const auto& span : wave) num_blocks += (span.num_queries + queries - 1) / queries;
        member.share(num_blocks * heads, 1, [&](int idx) {
            int block = idx / heads, head = idx % heads;
            auto span = wave.begin();
            for (int count; block >= (count = (span->num_queries + queries - 1) / queries); ++span)
                block -= count;
            int begin = block * queries, num = std::min(queries, span->num_queries - begin);
            size_t column = size_t(head) * group * shape_.head_dim;
            size_t token = size_t(span->first_token) + begin;
            attend_block<Kind>(*span, shape_, begin, num,
                               tensors.q + token * tensors.q_stride + column, tensors.q_stride,
                               packed_head(*span, head), blocks_[member.rank()],
                               tensors.out + token * width + column, width);
        });
    }

    const Batch& batch_;
    AttentionShape shape_;
    size_t packed_ = 0;
    T* packed_at_ = nullptr;
    std::vector<std::vector<PrefillSpan>> waves_;
    DecodePlan<Kind> decode_;
    std::vector<DecodeScratch<T>> singles_;
    std::vector<BlockScratch<T>> blocks_;
};

}  // namespace tokenbus
