// A whole pass through a decoder's layers on one team of threads.
//
// Few tokens: every phase shares the panels of a weight out, so that each weight is read once by
// one thread. Many tokens: every thread takes blocks of rows through all that lies between two
// attentions, so that what a block computes stays in its cache.
#pragma once

#include <map>
#include <memory>
#include <tuple>

#include "attention.h"
#include "layers.h"
#include "rows.h"

namespace tokenbus {

// From here on a pass goes by blocks of rows, per thread.
constexpr int kRowsPerThread = 64;
// Rows of a block: their widest vectors fill a fraction of L2.
constexpr int kBlock = 64;

template <class Kind>
class Pass {
   public:
    using T = typename Kind::Value;

    Pass(const Model& model, const Batch& batch, float* hidden)
        : model_(model), batch_(batch), hidden_(hidden) {
        const int num_threads = batch.num_threads;
        by_rows_ = num_threads > 1 ? batch.num_tokens >= kRowsPerThread * num_threads
                                   : batch.num_tokens > kBlock;
        num_blocks_ = (batch.num_tokens + kBlock - 1) / kBlock;
        num_blocks_ = (num_blocks_ + num_threads - 1) / num_threads * num_threads;
        for (int idx = 0; idx < model.num_layers; idx++) {
            const Layer& layer = model.layers[idx];
            qkv_width_ = std::max(qkv_width_, size_t(layer.qkv.num_outputs));
            for (const Linear* linear : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
                if (linear->format != kPlain)
                    widest_ = std::max(widest_, padded<Kind>(linear->num_inputs));
            auto& plan = plans_[key(layer.shape)];
            if (!plan) plan = std::make_unique<AttentionPlan<Kind>>(batch, layer.shape);
            num_phases_ += 8 + plan->num_phases();
        }
    }

    // False if there is no memory for it.
    bool run(Workspace& workspace) {
        Cutter counter(nullptr);
        cut(counter);
        char* base = workspace.reserve(counter.used());
        if (base == nullptr) return false;
        Cutter cutter(base);
        cut(cutter);
        run_team(batch_.num_threads, num_phases_ + 2, [&](Member& member) {
            by_rows_ ? run_by_rows(member) : run_by_panels(member);
        });
        return true;
    }

   private:
    // Rows [origin, …) of what lies between two attentions.
    struct View {
        T* x;           // [rows, H], normalised
        T* inner;       // [rows, I]
        float* branch;  // [rows, H], to be added to the residual stream
        T* wide;        // a panel of widened weights
        int origin;
    };

    using Key = std::tuple<int, int, int, int, float, float>;

    static Key key(const AttentionShape& s) {
        return {s.num_heads, s.num_kv_heads, s.head_dim, s.window, s.scale, s.softcap};
    }

    // Every member has a view: rows of its own, or a look at those that all share.
    void cut(Cutter& cutter) {
        const size_t rows = by_rows_ ? kBlock : batch_.num_tokens;
        qkv_ = cutter.take<T>(batch_.num_tokens * qkv_width_);
        attended_ = cutter.take<T>(batch_.num_tokens * qkv_width_);
        views_.resize(batch_.num_threads);
        for (size_t idx = 0; idx < views_.size(); idx++) {
            View& view = views_[idx];
            if (idx == 0 || by_rows_) {
                view.x = cutter.take<T>(rows * model_.hidden_size);
                view.inner = cutter.take<T>(rows * model_.inner_size);
                view.branch = cutter.take<float>(rows * model_.hidden_size);
                view.origin = 0;
            } else {
                view = views_[0];
            }
            view.wide = cutter.take<T>(kPanel * widest_);
        }
        for (auto& [_, plan] : plans_) plan->cut(cutter, batch_.num_threads);
    }

    void run_by_panels(Member& member) {
        const View& view = views_[member.rank()];
        const int num_rows = batch_.num_tokens;
        auto rows = [&](auto f) {
            member.share(num_rows, std::max(1, num_rows / (4 * member.size())), f);
            member.wait();
        };
        auto panels = [&](int count, auto f) {
            member.share(count, 1, f);
            member.wait();
        };
        for (int idx = 0; idx < model_.num_layers; idx++) {
            const Layer& layer = model_.layers[idx];
            rows([&](int row) {
                if (idx > 0) leave(view, row, model_.layers[idx - 1].post_mlp_norm);
                enter(view, row, layer.pre_attention_norm);
            });
            panels(num_panels(layer.qkv), [&](int p) { qkv_panel(view, layer, p, num_rows); });
            rows([&](int row) { place_heads(layer, row); });
            attend(member, layer);
            panels(num_panels(layer.o), [&](int p) { o_panel(view, layer, p, num_rows); });
            rows([&](int row) {
                leave(view, row, layer.post_attention_norm);
                enter(view, row, layer.pre_mlp_norm);
            });
            panels(num_panels(layer.gate_up) / 2,
                   [&](int p) { gate_panel(view, layer, p, num_rows); });
            panels(num_panels(layer.down), [&](int p) { down_panel(view, layer, p, num_rows); });
        }
        rows([&](int row) { leave(view, row, model_.layers[model_.num_layers - 1].post_mlp_norm); });
    }

    void run_by_rows(Member& member) {
        for (int idx = 0; idx <= model_.num_layers; idx++) {
            member.share(num_blocks_, 1, [&](int block) {
                View view = views_[member.rank()];
                view.origin = int(int64_t(batch_.num_tokens) * block / num_blocks_);
                int end = int(int64_t(batch_.num_tokens) * (block + 1) / num_blocks_);
                if (idx > 0) finish_rows(view, model_.layers[idx - 1], end);
                if (idx < model_.num_layers) start_rows(view, model_.layers[idx], end);
            });
            member.wait();
            if (idx < model_.num_layers) attend(member, model_.layers[idx]);
        }
    }

    void start_rows(const View& view, const Layer& layer, int end) {
        const int num_rows = end - view.origin;
        for (int row = view.origin; row < end; row++) enter(view, row, layer.pre_attention_norm);
        for (int p = 0; p < num_panels(layer.qkv); p++) qkv_panel(view, layer, p, num_rows);
        for (int row = view.origin; row < end; row++) place_heads(layer, row);
    }

    void finish_rows(const View& view, const Layer& layer, int end) {
        const int num_rows = end - view.origin;
        for (int p = 0; p < num_panels(layer.o); p++) o_panel(view, layer, p, num_rows);
        for (int row = view.origin; row < end; row++) {
            leave(view, row, layer.post_attention_norm);
            enter(view, row, layer.pre_mlp_norm);
        }
        for (int p = 0; p < num_panels(layer.gate_up) / 2; p++) gate_panel(view, layer, p, num_rows);
        for (int p = 0; p < num_panels(layer.down); p++) down_panel(view, layer, p, num_rows);
        for (int row = view.origin; row < end; row++) leave(view, row, layer.post_mlp_norm);
    }

    void enter(const View& view, int row, const float* norm) {
        const size_t size = model_.hidden_size;
        const float* from = hidden_ + row * size;
        T* to = view.x + (row - view.origin) * size;
        if (norm == nullptr) {
            round_row(from, int(size), to);
        } else {
            rms_norm(from, norm, int(size), model_.norm_eps, to);
        }
    }

    void leave(const View& view, int row, const float* norm) {
        const size_t size = model_.hidden_size;
        add_branch(hidden_ + row * size, view.branch + (row - view.origin) * size, norm, int(size),
                   model_.norm_eps, model_.residual_scale);
    }

    void qkv_panel(const View& view, const Layer& layer, int panel, int num_rows) {
        T* to = qkv_ + view.origin * qkv_width_;
        linear_panel<Kind>(layer.qkv, view.x, model_.hidden_size, num_rows, panel, view.wide,
                           [&](int row, int column, int width, const float* sums) {
                               store_row(to + row * qkv_width_ + column, sums, width);
                           });
    }

    void o_panel(const View& view, const Layer& layer, int panel, int num_rows) {
        const size_t width = layer.o.num_inputs;
        branch_panel(view, layer.o, attended_ + view.origin * width, width, panel, num_rows);
    }

    void down_panel(const View& view, const Layer& layer, int panel, int num_rows) {
        branch_panel(view, layer.down, view.inner, model_.inner_size, panel, num_rows);
    }

    void branch_panel(const View& view, const Linear& linear, const T* x, size_t stride, int panel,
                      int num_rows) {
        linear_panel<Kind>(linear, x, stride, num_rows, panel, view.wide,
                           [&](int row, int column, int width, const float* sums) {
                               float* to = view.branch + size_t(row) * model_.hidden_size + column;
                               std::memcpy(to, sums, width * sizeof(float));
                           });
    }

    void gate_panel(const View& view, const Layer& layer, int pair, int num_rows) {
        alignas(kCacheLine) float gates[kBlock * kPanel];
        const size_t hidden_size = model_.hidden_size, inner_size = model_.inner_size;
        const int column = pair * kPanel;
        const int width = std::min(kPanel, model_.inner_size - column);
        for (int first = 0; first < num_rows; first += kBlock) {
            const int count = std::min(kBlock, num_rows - first);
            const T* x = view.x + first * hidden_size;
            auto keep = [&](int row, int, int, const float* sums) {
                std::memcpy(gates + row * kPanel, sums, kPanel * sizeof(float));
            };
            linear_panel<Kind>(layer.gate_up, x, hidden_size, count, 2 * pair, view.wide, keep);
            auto combine = [&](int row, int, int, const float* ups) {
                gate(gates + row * kPanel, ups, width, Activation(model_.activation),
                     view.inner + (first + row) * inner_size + column);
            };
            linear_panel<Kind>(layer.gate_up, x, hidden_size, count, 2 * pair + 1, view.wide,
                               combine);
        }
    }

    // Normalise and rotate a token's query and key heads, and write its key and value to its slot.
    void place_heads(const Layer& layer, int row) {
        const AttentionShape& shape = layer.shape;
        const int dim = shape.head_dim, num_q = shape.num_heads, num_kv = shape.num_kv_heads;
        T* q = qkv_ + row * qkv_width_;
        T* k = q + num_q * dim;
        const T* v = k + num_kv * dim;
        for (int i = 0; layer.q_norm != nullptr && i < num_q * dim; i += layer.q_norm_size)
            rms_norm(q + i, layer.q_norm, layer.q_norm_size, model_.norm_eps, q + i);
        for (int i = 0; layer.k_norm != nullptr && i < num_kv * dim; i += layer.k_norm_size)
            rms_norm(k + i, layer.k_norm, layer.k_norm_size, model_.norm_eps, k + i);
        if (layer.cos != nullptr) {
            size_t at = size_t(batch_.positions[row]) * layer.rot_dim;
            for (int head = 0; head < num_q + num_kv; head++)
                rotate(q + head * dim, layer.cos + at, layer.sin + at, layer.rot_dim);
        }
        Pages<T> keys{static_cast<T*>(layer.k_pages), shape};
        Pages<T> values{static_cast<T*>(layer.v_pages), shape};
        for (int head = 0; head < num_kv; head++) {
            std::memcpy(keys.slot(batch_.slots[row], head), k + head * dim, dim * sizeof(T));
            std::memcpy(values.slot(batch_.slots[row], head), v + head * dim, dim * sizeof(T));
        }
    }

    void attend(Member& member, const Layer& layer) {
        AttentionTensors<T> tensors{{static_cast<T*>(layer.k_pages), layer.shape},
                                    {static_cast<T*>(layer.v_pages), layer.shape},
                                    qkv_, qkv_width_, attended_};
        plans_.at(key(layer.shape))->run(member, tensors);
    }

    const Model& model_;
    const Batch& batch_;
    float* hidden_;  // [T, H], the residual stream, never rounded
    bool by_rows_ = false;
    int num_blocks_ = 0;
    size_t num_phases_ = 0;
    size_t qkv_width_ = 0;
    size_t widest_ = 0;  // inputs of the widest rounded linear
    T* qkv_ = nullptr;
    T* attended_ = nullptr;
    std::vector<View> views_;
    std::map<Key, std::unique_ptr<AttentionPlan<Kind>>> plans_;
};

}  // namespace tokenbus
