// Which keys the sequences with one query attend to in which pieces of work. A run of pages that
// several sequences hold is read once for all of them; a long context that would leave threads
// idle is cut into parts; what a query found in its parts is merged at the end.
#pragma once

#include <vector>

#include "shared_attention.h"
#include "team.h"

namespace tokenbus {

// Pieces per thread that cutting aims at: the last of them leaves threads idle for a sixteenth.
constexpr int kPiecesPerThread = 8;
// Keys that a part has at least: merging it costs what a few dozen keys do.
constexpr int kMinPartKeys = 256;

// Query heads of a run below which its rows read it one by one: a vector of queries takes as long
// for one as for 16, and with 6 heads of 64 values reading together took 1.2 times as long.
constexpr int kMinSharedHeads = 12;

// Queries as rows `q_stride` values apart, heads side by side; out: [T, Hq * D].
template <class T>
struct AttentionTensors {
    Pages<T> keys;
    Pages<T> values;
    const T* q;
    size_t q_stride;
    T* out;
};

// One thread's buffers.
template <class T>
struct DecodeScratch {
    float* scores;
    Partial whole;  // of one KV head's query heads
    SharedScratch<T> shared;
};

template <class Kind>
class DecodePlan {
   public:
    using T = typename Kind::Value;

    DecodePlan(const Batch& batch, const AttentionShape& shape)
        : batch_(batch), shape_(shape), begins_(batch.num_seqs), num_parts_(batch.num_seqs) {
        for (int seq = 0; seq < batch.num_seqs; seq++)
            begins_[seq] = first_visible(shape, batch.context_lens[seq] - 1);
        // Where a window moves, rows leave a run one by one; pairs along a head need even heads.
        const bool fits = shape.head_dim % Kind::kStep == 0 && group() <= kSharedRows;
        if (shape.window == 0 && fits) add_runs();
        add_own();
        int used = 0;
        for (int seq = 0; seq < batch.num_seqs; seq++) {
            slots_.push_back(used);
            if (num_parts_[seq] > 1) {
                used += num_parts_[seq];
                merged_.push_back(seq);
            }
        }
        num_slots_ = used;
    }

    // Calls of Member::share that one layer needs.
    static constexpr size_t kNumPhases = 2;

    void cut(Cutter& cutter, std::vector<DecodeScratch<T>>& threads) {
        const size_t heads = shape_.num_heads, dim = shape_.head_dim, rows = kSharedRows;
        partials_ = take_partial(cutter, num_slots_ * heads);
        for (auto& own : threads) {
            own.scores = cutter.take<float>(score_scratch(longest_));
            own.whole = take_partial(cutter, heads);
            if (shared_.empty()) continue;
            own.shared.queries = cutter.take<T>(rows * dim);
            own.shared.values = cutter.take<T>(kSharedKeys * dim);
            own.shared.weights = cutter.take<T>(size_t(kSharedKeys) * kPanel);
            own.shared.scores = cutter.take<float>(size_t(kSharedKeys) * kPanel);
            own.shared.sums = cutter.take<float>(rows * dim);
            own.shared.most = cutter.take<float>(rows);
            own.shared.total = cutter.take<float>(rows);
        }
    }

    // Attend; all keys and values of the pass are in their pages, and all members have seen that.
    void run(Member& member, const AttentionTensors<T>& tensors,
             const std::vector<DecodeScratch<T>>& threads) const {
        const int heads = shape_.num_kv_heads, num_shared = int(shared_.size());
        const auto& scratch = threads[member.rank()];
        member.share((num_shared + int(own_.size())) * heads, 1, [&](int idx) {
            const int piece = idx / heads, head = idx % heads;
            if (piece < num_shared) {
                attend_shared(shared_[piece], head, tensors, scratch);
            } else {
                attend_own(own_[piece - num_shared], head, tensors, scratch);
            }
        });
        member.wait();
        if (merged_.empty()) return;
        member.share(int(merged_.size()) * heads, 1,
                     [&](int idx) { merge(merged_[idx / heads], idx % heads, tensors); });
        member.wait();
    }

   private:
    // Keys [first, end) of one sequence.
    struct Own {
        int seq, first, end, part;
    };

    // Keys [first, end) of members [begin, begin + count) of the batch's runs.
    struct Shared {
        int begin, count, first, end, part;
    };

    int group() const { return shape_.num_heads / shape_.num_kv_heads; }

    // Call f(first, end) for parts of [begin, end), whole pages but for the last; `total` is how
    // many keys all pieces of this kind have together.
    template <class F>
    void for_parts(int begin, int end, int64_t total, F f) const {
        const int64_t wanted = int64_t(kPiecesPerThread) * batch_.num_threads;
        const int64_t keys = std::max<int64_t>(kMinPartKeys, total * shape_.num_kv_heads / wanted);
        const int num = batch_.num_threads == 1 ? 1 : std::max<int>(1, int((end - begin) / keys));
        const int size = shape_.page_size;
        int first = begin;
        for (int part = 1; part <= num; part++) {
            int last = begin + int(int64_t(end - begin) * part / num);
            if (part < num) last = last / size * size;
            if (last > first) f(first, last);
            first = std::max(first, last);
        }
    }

    void add_runs() {
        const int members = kSharedRows / group();
        // Runs that follow another have no more rows than that one, so none is left hanging.
        std::vector<Run> runs;
        for (int idx = 0; idx < batch_.num_runs; idx++)
            if (batch_.runs[idx].num_members * group() >= kMinSharedHeads)
                runs.push_back(batch_.runs[idx]);
        int64_t total = 0;
        for (const Run& run : runs) {
            const int blocks = (run.num_members + members - 1) / members;
            total += int64_t(run.end_page - run.first_page) * shape_.page_size * blocks;
        }
        for (const Run& run : runs) {
            const int32_t* rows = batch_.members + run.first_member;
            const int end = run.end_page * shape_.page_size;
            for_parts(run.first_page * shape_.page_size, end, total, [&](int first, int last) {
                const int part = num_parts_[rows[0]];
                for (int i = 0; i < run.num_members; i += members)
                    shared_.push_back({run.first_member + i,
                                       std::min(members, run.num_members - i), first, last, part});
                for (int i = 0; i < run.num_members; i++) num_parts_[rows[i]]++;
            });
            for (int i = 0; i < run.num_members; i++) begins_[rows[i]] = end;
        }
    }

    void add_own() {
        int64_t total = 0;
        for (int seq = 0; seq < batch_.num_seqs; seq++)
            if (batch_.query_len(seq) == 1) total += batch_.context_lens[seq] - begins_[seq];
        for (int seq = 0; seq < batch_.num_seqs; seq++) {
            if (batch_.query_len(seq) != 1) continue;
            for_parts(begins_[seq], batch_.context_lens[seq], total, [&](int first, int end) {
                own_.push_back({seq, first, end, num_parts_[seq]++});
                longest_ = std::max(longest_, end - first);
            });
        }
    }

    Partial take_partial(Cutter& cutter, size_t heads) const {
        return {cutter.take<float>(heads * Partial::stride(shape_.head_dim)), shape_.head_dim};
    }

    Partial partial(int seq, int part, int head) const {
        return partials_.head(size_t(slots_[seq] + part) * shape_.num_heads + head);
    }

    const int32_t* table(int seq) const {
        return batch_.block_table + size_t(seq) * batch_.table_stride;
    }

    const T* query(const AttentionTensors<T>& tensors, int seq, int head) const {
        const T* token = tensors.q + batch_.query_starts[seq] * tensors.q_stride;
        return token + size_t(head) * shape_.head_dim;
    }

    T* result(const AttentionTensors<T>& tensors, int seq, int head) const {
        const size_t row = size_t(batch_.query_starts[seq]) * shape_.num_heads + head;
        return tensors.out + row * shape_.head_dim;
    }

    void attend_own(const Own& own, int kv_head, const AttentionTensors<T>& tensors,
                    const DecodeScratch<T>& scratch) const {
        const int head = kv_head * group();
        const bool whole = num_parts_[own.seq] == 1;
        const Partial to = whole ? scratch.whole : partial(own.seq, own.part, head);
        attend_part<Kind>(query(tensors, own.seq, head), tensors.keys, tensors.values,
                          table(own.seq), own.first, own.end, kv_head, scratch.scores, to);
        for (int g = 0; whole && g < group(); g++)
            finish_head(to.head(g), result(tensors, own.seq, head + g));
    }

    void attend_shared(const Shared& shared, int kv_head, const AttentionTensors<T>& tensors,
                       const DecodeScratch<T>& scratch) const {
        const int32_t* rows = batch_.members + shared.begin;
        const int head = kv_head * group(), num_rows = shared.count * group();
        SharedQueries<Kind> queries(shape_, scratch.shared, num_rows, [&](int row) {
            return query(tensors, rows[row / group()], head + row % group());
        });
        queries.attend(tensors.keys, tensors.values, table(rows[0]), shared.first, shared.end,
                       kv_head);
        for (int row = 0; row < num_rows; row++)
            queries.leave(row, partial(rows[row / group()], shared.part, head + row % group()));
    }

    void merge(int seq, int kv_head, const AttentionTensors<T>& tensors) const {
        for (int head = kv_head * group(); head < (kv_head + 1) * group(); head++) {
            const Partial into = partial(seq, 0, head);
            for (int part = 1; part < num_parts_[seq]; part++)
                merge_head(into, partial(seq, part, head));
            finish_head(into, result(tensors, seq, head));
        }
    }

    const Batch& batch_;
    AttentionShape shape_;
    std::vector<int> begins_;     // per sequence, its first key outside of all runs
    std::vector<int> num_parts_;  // per sequence
    std::vector<int> slots_;      // per sequence, its first part in `partials_`
    std::vector<int> merged_;     // sequences with several parts
    std::vector<Shared> shared_;
    std::vector<Own> own_;
    int longest_ = 0;
    int num_slots_ = 0;
    Partial partials_{};
};

}  // namespace tokenbus
